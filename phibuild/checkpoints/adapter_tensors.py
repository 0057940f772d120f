"""The tensors of a LoRA adapter, checked by their headers against the base and adapter_config.json.

They are named `base_model.model.<module>` and then `.lora_A.weight` [r, in] and `.lora_B.weight`
[out, r] of a linear layer, `.lora_embedding_A` [r, vocabulary] and `.lora_embedding_B` [hidden, r]
of an embedding, `.weight` of a module that was trained whole (`modules_to_save`), or
`.base_layer.weight` of one that has a LoRA too (PEFT's save_and_load.py). A state that was saved as
it is has the adapter's name in it, `.lora_A.default.weight`: PEFT loads that of the one it calls
"default", and overlooks every other.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from phibuild.checkpoints.adapter_config import MERGE, SAVE_AGAIN, AdapterConfig
from phibuild.checkpoints.tensors import DTYPES, FETCH, first_names, first_problems
from phibuild.errors import Problem, SourceError
from phibuild.worker.adapter_merge import ADAPTER_WEIGHTS, Delta, Replacement
from phibuild.worker.safetensors import TensorInfo, read_header
from phibuild.worker.unfused import EMBEDDING, HEAD, Place

_PICKLE = "adapter_model.bin"
_NAME = re.compile(
    r"base_model\.model\.(?P<module>.+?)\."
    r"(?:(?P<lora>lora_[AB])(?:\.default)?\.weight|(?P<embedding>lora_embedding_[AB])(?:\.default)?|"
    r"(?:base_layer\.)?weight)"
)
_WHOLE = "weight"
_VARIANTS = {
    "lora_magnitude_vector": "DoRA",
    "lora_B.bias": "LoRA with biases of its own",
    ".bias": "LoRA with trained biases",
    "trainable_tokens": "LoRA with single trained tokens",
}
_OTHER_BASE = "is it an adapter for another base model?"

Modules = dict[str, dict[str, TensorInfo]]
"""Tensors by module and kind: lora_A, lora_B, lora_embedding_A, lora_embedding_B, weight."""


def read_adapter_tensors(folder: Path, known: Mapping[str, Place]) -> Modules:
    """Return the tensors of an adapter folder for a base that has the modules `known`.

    Raises SourceError if they cannot be read, or with all names and types that are no plain LoRA's.
    """
    path = folder / ADAPTER_WEIGHTS
    if not path.is_file():
        if (folder / _PICKLE).exists():
            what = f"only pickled weights ({_PICKLE}), which can run code when loaded"
            raise SourceError(Problem(what, str(folder), f"{SAVE_AGAIN}, as safetensors"))
        raise SourceError(Problem(f"{ADAPTER_WEIGHTS} is missing", str(folder), SAVE_AGAIN))
    try:
        tensors = read_header(path)
    except (ValueError, OSError) as error:
        raise SourceError(Problem(str(error), str(path), FETCH)) from error
    problems = list(_wrong_tensors(tensors, known, str(path)))
    if problems:
        raise SourceError(*problems)
    modules: Modules = {}
    for name, info in tensors.items():
        if match := _NAME.fullmatch(name):
            parts = modules.setdefault(match["module"], {})
            kind = match["lora"] or match["embedding"] or _WHOLE
            if kind in parts:
                what = f"{parts[kind].name} and {name} are of one module"
                raise SourceError(Problem(what, str(path), SAVE_AGAIN))
            parts[kind] = info
    return modules


def _wrong_tensors(
    tensors: Mapping[str, TensorInfo], known: Mapping[str, Place], path: str
) -> Iterator[Problem]:
    """Yield what is wrong with the tensors' names and types."""
    if not tensors:
        yield Problem("it holds no tensors", path, SAVE_AGAIN)
    for part, what in _VARIANTS.items():
        if found := [name for name in tensors if part in name]:
            yield Problem(f"{what} is not supported ({first_names(found)})", path, MERGE)
            return
    not_lora, not_in_base = [], []
    for name in tensors:
        match = _NAME.fullmatch(name)
        if match is None:
            not_lora.append(name)
        elif match["module"] not in known:
            not_in_base.append(name)
    if not_lora:
        what = f"{len(not_lora)} tensor(s) that are no LoRA's: {first_names(not_lora)}"
        yield Problem(what, path, f"{SAVE_AGAIN}: names begin with base_model.model.")
    if not_in_base:
        names = first_names(not_in_base)
        what = f"{len(not_in_base)} tensor(s) of modules that the base has not: {names}"
        yield Problem(what, path, _OTHER_BASE)
    yield from first_problems(
        Problem(f"tensor {name} is {info.dtype}", path, f"{SAVE_AGAIN} as {', '.join(DTYPES)}")
        for name, info in tensors.items()
        if info.dtype not in DTYPES
    )


def module_changes(
    module: str, parts: Mapping[str, TensorInfo], place: Place, config: AdapterConfig
) -> tuple[Replacement | None, Delta | None]:
    """Return what an adapter does to a module. Raises SourceError if the tensors do not fit."""
    replacement, delta = None, None
    problems: list[Problem] = []
    if _WHOLE in parts:
        info = parts[_WHOLE]
        problems += _wrong_shape(info, place.shape, place)
        replacement = Replacement(info.name, place.first, place.shape[0])
    kinds = sorted(set(parts) - {_WHOLE})
    if kinds:
        embedding = place.tensor == EMBEDDING
        pair = ["lora_embedding_A", "lora_embedding_B"] if embedding else ["lora_A", "lora_B"]
        if kinds != pair or len(place.shape) != 2:
            expected = " and ".join(pair) if len(place.shape) == 2 else "nothing: it is a norm"
            what = f"module {module} has {', '.join(kinds)}; its LoRA has {expected}"
            raise SourceError(Problem(what, str(parts[kinds[0]].path), SAVE_AGAIN))
        a, b = (parts[kind] for kind in pair)
        rank, (rows, columns) = config.rank_of(module), place.shape
        outer, inner = (columns, rows) if embedding else (rows, columns)
        problems += [*_wrong_shape(a, (rank, inner), place), *_wrong_shape(b, (outer, rank), place)]
        scale = config.scale_of(module)
        delta = Delta(a.name, b.name, rank, scale, place.first, rows, embedding)
    if problems:
        raise SourceError(*problems)
    return replacement, delta


def _wrong_shape(info: TensorInfo, expected: tuple[int, ...], place: Place) -> Iterator[Problem]:
    """Yield what is wrong with the shape of a tensor that should have the shape `expected`."""
    if info.shape == expected:
        return
    path = str(info.path)
    if math.prod(info.shape) == 0:
        what = f"tensor {info.name} is empty, as DeepSpeed ZeRO-3 leaves what it did not gather"
        yield Problem(what, path, "gather the weights before saving (zero_to_fp32.py)")
        return
    tokens = place.shape[0]
    if place.tensor in (EMBEDDING, HEAD) and len(info.shape) == len(expected):
        wrong = [
            found for found, wanted in zip(info.shape, expected, strict=True) if found != wanted
        ]
        if len(wrong) == 1 and expected[info.shape.index(wrong[0])] == tokens:
            yield Problem(
                f"resized embeddings: {info.name} has {wrong[0]:,} tokens, the base {tokens:,}",
                path,
                "merge it into the resized model (PEFT's merge_and_unload) and give that",
            )
            return
    yield Problem(
        f"tensor {info.name} has shape {list(info.shape)}, {list(expected)} is due",
        path,
        f"{_OTHER_BASE} r and rank_pattern of its configuration must fit as well",
    )


def overlaps(changes: Mapping[str, Sequence[Delta | Replacement]], path: Path) -> Iterator[Problem]:
    """Yield canonical tensors that are changed both whole and in parts."""
    for tensor, parts in changes.items():
        ordered = sorted(parts, key=lambda part: (part.first, part.rows))
        if any(one.first + one.rows > other.first for one, other in pairwise(ordered)):
            yield Problem(f"the adapter has {tensor} both whole and in parts", str(path), MERGE)


def incomplete(
    modules: Modules, known: Mapping[str, Place], config: AdapterConfig, path: Path
) -> Iterator[Problem]:
    """Yield target modules of which some layers have tensors and others not, and modules_to_save
    without any: PEFT leaves the first as they are, with a warning, and fails at the second."""
    adapted = {module for module, parts in modules.items() if set(parts) - {_WHOLE}}
    for target in config.targets:
        expected = {name for name in known if name == target or name.endswith(f".{target}")}
        missing = sorted(expected - adapted)
        if missing and len(missing) < len(expected):
            count = f"{len(missing)} of {len(expected)}"
            what = f"no LoRA of {count} modules {target!r}: {first_names(missing)}"
            yield Problem(what, str(path), SAVE_AGAIN)
    for name in config.saved:
        expected = {module for module in known if module.endswith(name)}
        if expected and not any(_WHOLE in modules.get(module, ()) for module in expected):
            what = f"no tensor of {name!r}, which modules_to_save has"
            yield Problem(what, str(path), SAVE_AGAIN)
