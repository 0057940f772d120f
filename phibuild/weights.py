"""The weight files of a checkpoint: read by their headers, checked against config.json."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from phibuild.architecture import Architecture
from phibuild.errors import Problem
from phibuild.safetensors_io import INDEX, TensorInfo, read_header, shard_paths

DTYPES = ("BF16", "F16", "F32")
FETCH = "fetch this file again"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def read_tensors(folder: Path, problems: list[Problem]) -> dict[str, TensorInfo]:
    try:
        paths = shard_paths(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        problems.append(Problem("the index is damaged", str(folder / INDEX), FETCH))
        return {}
    if not paths:
        pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
        if pickles:
            problems.append(
                Problem(
                    f"only pickled weights ({pickles[0]}), which can run code when loaded",
                    str(folder),
                    "convert them to safetensors first",
                )
            )
        else:
            problems.append(
                Problem(
                    "no weights (model*.safetensors)", str(folder), "fetch the checkpoint again"
                )
            )
        return {}
    tensors: dict[str, TensorInfo] = {}
    for path in paths:
        if not path.is_file():
            problems.append(
                Problem(
                    "missing shard that the index names", str(path), "fetch the checkpoint again"
                )
            )
            continue
        try:
            tensors.update(read_header(path))
        except (ValueError, OSError) as error:
            problems.append(Problem(str(error), str(path), FETCH))
    return {} if problems else tensors


def check_tensors(
    tensors: Mapping[str, TensorInfo], architecture: Architecture, folder: Path
) -> Iterator[Problem]:
    together = "config.json and the weights must belong together"
    if architecture.layers > len(tensors):
        yield Problem(
            f"config.json says {architecture.layers:,} layers, there are {len(tensors):,} tensors",
            str(folder),
            together,
        )
        return
    expected = dict(architecture.tensors())
    missing = [name for name in expected if name not in tensors]
    if missing:
        yield Problem(f"{len(missing)} tensor(s) missing: {some(missing)}", str(folder), together)
    there = {name: tensors[name] for name in expected if name in tensors}
    yield from some_problems(
        Problem(
            f"tensor {name} has shape {list(found.shape)}, config.json says {list(expected[name])}",
            str(found.path),
            together,
        )
        for name, found in there.items()
        if found.shape != expected[name]
    )
    yield from some_problems(
        Problem(
            f"tensor {name} is {found.dtype}",
            str(found.path),
            f"start from the original weights ({', '.join(DTYPES)})",
        )
        for name, found in there.items()
        if found.dtype not in DTYPES
    )
    known = set(expected) | {"lm_head.weight"}
    surplus = [
        name for name in tensors if name not in known and not name.endswith("rotary_emb.inv_freq")
    ]
    if surplus:
        yield Problem(
            f"{len(surplus)} tensor(s) that Phi3ForCausalLM has not: {some(surplus)}",
            str(folder),
            "merge adapters and remove extra heads first",
        )


def some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    # A file may hold any name, those with control characters too.
    return ", ".join(name if name.isprintable() else repr(name) for name in names[:3]) + more


def some_problems(problems: Iterable[Problem]) -> Iterator[Problem]:
    """Yield three problems of a kind, the third with how many there are besides."""
    found = list(problems)
    yield from found[:2]
    if len(found) > 2:
        more = f" (and {len(found) - 3} more tensors)" if len(found) > 3 else ""
        yield replace(found[2], what=found[2].what + more)
