"""The weight files of a checkpoint: read by their headers, checked against config.json."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from phibuild.errors import Problem
from phibuild.worker.architecture import Architecture
from phibuild.worker.safetensors import INDEX, SINGLE, TensorInfo, read_header, shard_paths

DTYPES = ("BF16", "F16", "F32")
FETCH = "fetch this file again"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_COMPARED_BYTES = 8 << 20


def read_tensors(folder: Path, problems: list[Problem]) -> dict[str, TensorInfo]:
    """Return the tensors of the files that Transformers would load, by name; {} with the problems
    if one of them cannot be read, or if two hold the same tensor."""
    try:
        paths = shard_paths(folder)
    except (OSError, json.JSONDecodeError, KeyError, TypeError, AttributeError, RecursionError):
        problems.append(Problem("the index is damaged", str(folder / INDEX), FETCH))
        return {}
    except ValueError as error:  # which says what it has found
        problems.append(Problem(f"the index is damaged: {error}", str(folder / INDEX), FETCH))
        return {}
    if not paths:
        problems.append(_no_weights(folder))
        return {}
    tensors: dict[str, TensorInfo] = {}
    twice: list[Problem] = []
    for path in paths:
        if not path.is_file():
            problems.append(
                Problem(
                    "missing shard that the index names", str(path), "fetch the checkpoint again"
                )
            )
            continue
        try:
            found = read_header(path)
        except (ValueError, OSError) as error:
            problems.append(Problem(str(error), str(path), FETCH))
            continue
        twice += [
            Problem(
                f"tensor {first_names([name])} lies in {tensors[name].path.name} too",
                str(path),
                "one of the files is of another save: remove it, or fetch the checkpoint again",
            )
            for name in found
            if name in tensors
        ]
        tensors.update(found)
    problems += first_problems(twice)
    return {} if problems else tensors


def _no_weights(folder: Path) -> Problem:
    """Say what there is in place of the files that Transformers would load."""
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    if others:
        return Problem(
            f"neither {SINGLE} nor {INDEX}; {first_names(others)} would not be loaded by "
            "Transformers",
            str(folder),
            f"call a single file {SINGLE}, or fetch the index of the shards",
        )
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        return Problem(
            f"only pickled weights ({pickles[0]}), which can run code when loaded",
            str(folder),
            "convert them to safetensors first",
        )
    return Problem("no weights (model*.safetensors)", str(folder), "fetch the checkpoint again")


def ignored_weights(folder: Path) -> list[str]:
    """Return the names of weight files, and of an index, that lie beside those that are loaded."""
    used = {path.name for path in shard_paths(folder)}
    if SINGLE not in used:
        used.add(INDEX)
    present = {path.name for path in folder.glob("*.safetensors")}
    present |= {path.name for path in folder.glob("*.safetensors.index.json")}
    return sorted(present - used)


def has_own_head(tensors: Mapping[str, TensorInfo]) -> bool:
    """Return whether lm_head.weight is there and differs from the embedding: Transformers ties them
    only if they are equal, whatever config.json says. Both are read, up to the first difference."""
    head, embedding = tensors.get("lm_head.weight"), tensors.get("model.embed_tokens.weight")
    if head is None or embedding is None:
        return False
    return not same_content(head, embedding)


def same_content(one: TensorInfo, other: TensorInfo) -> bool:
    """Return whether two tensors are the same, byte for byte; they are read up to the first
    difference."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    with one.path.open("rb") as first, other.path.open("rb") as second:
        first.seek(one.offset)
        second.seek(other.offset)
        for start in range(0, one.nbytes, _COMPARED_BYTES):
            size = min(_COMPARED_BYTES, one.nbytes - start)
            if first.read(size) != second.read(size):
                return False
    return True


def check_tensors(
    tensors: Mapping[str, TensorInfo],
    architecture: Architecture,
    names: Iterable[tuple[str, tuple[int, ...]]],
    folder: Path,
) -> Iterator[Problem]:
    """Yield what is wrong with a checkpoint's tensors, which must be those of these `names` and
    shapes for an architecture."""
    together = "config.json and the weights must belong together"
    if architecture.layers > len(tensors):
        yield Problem(
            f"config.json says {architecture.layers:,} layers, there are {len(tensors):,} tensors",
            str(folder),
            together,
        )
        return
    expected = dict(names)
    missing = [name for name in expected if name not in tensors]
    if missing:
        what = f"{len(missing)} tensor(s) missing: {first_names(missing)}"
        yield Problem(what, str(folder), together)
    present = {name: tensors[name] for name in expected if name in tensors}
    yield from first_problems(
        Problem(
            f"tensor {name} has shape {list(found.shape)}, config.json says {list(expected[name])}",
            str(found.path),
            together,
        )
        for name, found in present.items()
        if found.shape != expected[name]
    )
    yield from first_problems(
        Problem(
            f"tensor {name} is {found.dtype}",
            str(found.path),
            f"start from the original weights ({', '.join(DTYPES)})",
        )
        for name, found in present.items()
        if found.dtype not in DTYPES
    )
    head, shape = tensors.get("lm_head.weight"), expected["model.embed_tokens.weight"]
    if architecture.tied and head is not None and head.shape != shape:
        yield Problem(
            f"tensor lm_head.weight has shape {list(head.shape)}, config.json says {list(shape)}",
            str(head.path),
            together,
        )
    known = set(expected) | {"lm_head.weight"}
    surplus = [
        name for name in tensors if name not in known and not name.endswith("rotary_emb.inv_freq")
    ]
    if surplus:
        yield Problem(
            f"{len(surplus)} tensor(s) that config.json's model has not: {first_names(surplus)}",
            str(folder),
            "merge adapters and remove extra heads first",
        )


def first_names(names: list[str]) -> str:
    """Return the first three of the names, and how many there are besides."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    # A file may hold any name, those with control characters too.
    return ", ".join(name if name.isprintable() else repr(name) for name in names[:3]) + more


def first_problems(problems: Iterable[Problem]) -> Iterator[Problem]:
    """Yield three problems of a kind, the third with how many there are besides."""
    found = list(problems)
    yield from found[:2]
    if len(found) > 2:
        more = f" (and {len(found) - 3} more tensors)" if len(found) > 3 else ""
        yield replace(found[2], what=found[2].what + more)
