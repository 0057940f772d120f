"""Canonical weights of a source that has them in other tensors or with an adapter beside them.

Tensors are made one after the other, a chunk of rows at a time, so that memory does not grow with
the model. Sums are those of PEFT's `merge_and_unload` on the CPU (peft/tuners/lora/layer.py): it
holds A and B as fp32, whatever they were saved as; a linear layer gets `B @ A * scale` added in
fp32 and is rounded once to its own type; an embedding's product is rounded to that type before it
is added. A module that was trained whole is rounded to the base's type when it is loaded. Rows of
a product do not depend on which others are computed with it.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from phibuild.backends.pytorch.dtypes import FLOATS
from phibuild.backends.pytorch.layout import MAX_SHARD_BYTES
from phibuild.backends.pytorch.memory import MERGED_ELEMENTS, MERGED_ROWS
from phibuild.worker.adapter_merge import Changes
from phibuild.worker.architecture import Architecture
from phibuild.worker.json_values import JsonObject
from phibuild.worker.protocol import WorkerError
from phibuild.worker.safetensors import (
    ITEM_BYTES,
    SafetensorsWriter,
    TensorInfo,
    read_checkpoint,
    read_header,
)


@dataclass(frozen=True)
class Origin:
    """Where the tensors of `arch` come from: those of the folder `weights`, each of its own name
    or, by `fusing`, the rows of others, changed as `adapter` says (`Fusing.to_json` and
    `Adapter.to_json`)."""

    weights: Path
    arch: Architecture
    fusing: Mapping[str, list[str]]
    adapter: JsonObject | None = None


def write_canonical(
    origin: Origin,
    output: Path,
    *,
    allow_nonfinite: bool = False,
    say: Callable[[float], None] = lambda done: None,
) -> None:
    """Write the tensors of `origin` into the empty folder `output`. Each keeps the type it has
    there.

    `say` gets the share that is done. Raises WorkerError if a tensor is missing or does not fit,
    or if a weight becomes infinite or NaN, and OSError.
    """
    base, arch, adapter = read_checkpoint(origin.weights), origin.arch, origin.adapter
    added = read_header(Path(adapter["weights"])) if adapter else {}
    changes = Changes.from_json(adapter) if adapter else Changes({}, {})
    plan = []
    for name, shape in arch.tensors():
        sources = [_expected(base, part) for part in origin.fusing.get(name, (name,))]
        rows = sum(source.shape[0] for source in sources)
        if (rows, *sources[0].shape[1:]) != shape:
            found = [rows, *sources[0].shape[1:]]
            raise WorkerError(f"{name} of the checkpoint is {found}; {list(shape)} is due")
        plan.append((name, shape, sources))
    # Wide types first, as in all files that phibuild writes: tensors begin at multiples of their
    # items' size.
    plan.sort(key=lambda one: -ITEM_BYTES[_dtype(one[2])])
    entries = [(name, _dtype(sources), shape) for name, shape, sources in plan]
    done = 0
    with SafetensorsWriter(
        output, entries, metadata={"format": "pt"}, max_shard_bytes=MAX_SHARD_BYTES
    ) as writer:
        for name, shape, sources in plan:
            width = math.prod(shape[1:])
            step = max(MERGED_ELEMENTS // width // MERGED_ROWS, 1) * MERGED_ROWS
            for row in range(0, shape[0], step):
                chunk = _rows(sources, row, min(step, shape[0] - row))
                _change(chunk, row, changes, added, name)
                if not allow_nonfinite:
                    _check(chunk, row, name)
                data = chunk.flatten().view(torch.uint8).numpy()
                writer.write(name, data.data, row * width * chunk.element_size())
            done += math.prod(shape)
            say(done / arch.parameters)


def _expected(tensors: Mapping[str, TensorInfo], name: str) -> TensorInfo:
    info = tensors.get(name)
    if info is None or info.dtype not in FLOATS:
        found = "is missing" if info is None else f"is {info.dtype}"
        raise WorkerError(f"{name} of the checkpoint {found}; a float tensor is due")
    return info


def _dtype(sources: list[TensorInfo]) -> str:
    """Return the type that holds the weights of all sources: fp32 where they differ."""
    types = {source.dtype for source in sources}
    return types.pop() if len(types) == 1 else "F32"


def _rows(sources: list[TensorInfo], row: int, count: int) -> Tensor:
    """Return `count` rows from number `row` on of the sources, one below the other."""
    chunk = torch.empty(count, *sources[0].shape[1:], dtype=FLOATS[_dtype(sources)])
    first = 0
    for source in sources:
        inside, place = _overlap(first, source.shape[0], row, count)
        if inside is not None:
            chunk[place] = _mapped(source)[inside]
        first += source.shape[0]
    return chunk


def _change(
    chunk: Tensor, row: int, changes: Changes, added: Mapping[str, TensorInfo], name: str
) -> None:
    """Do what an adapter does to the rows of the tensor `name` that begin with number `row`."""
    for part in changes.replacements.get(name, ()):
        inside, place = _overlap(part.first, part.rows, row, len(chunk))
        if inside is not None:
            chunk[place] = _mapped(_expected(added, part.tensor))[inside].to(chunk.dtype)
    for delta in changes.deltas.get(name, ()):
        inside, place = _overlap(delta.first, delta.rows, row, len(chunk))
        if inside is None:
            continue
        a, b = (_mapped(_expected(added, one)) for one in (delta.a, delta.b))
        if delta.embedding:
            product = (b.float() @ a[:, inside].float()).T.mul_(delta.scale)
            chunk[place] += product.to(chunk.dtype)
        else:
            chunk[place] += (b[inside].float() @ a.float()).mul_(delta.scale)


def _overlap(
    first: int, rows: int, row: int, count: int
) -> tuple[slice, slice] | tuple[None, None]:
    """Return which rows of a part, `rows` from `first` on, are among `count` rows from `row` on,
    counted in the part and among these; None if none is."""
    begin, end = max(first, row), min(first + rows, row + count)
    if begin >= end:
        return None, None
    return slice(begin - first, end - first), slice(begin - row, end - row)


def _mapped(info: TensorInfo) -> Tensor:
    """Return a tensor on mapped pages of its file, which take no memory of their own."""
    start = info.offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    with info.path.open("rb") as file:
        # Private pages: tensors are writable to PyTorch; nothing writes these.
        view = mmap.mmap(
            file.fileno(),
            info.offset - start + info.nbytes,
            access=mmap.ACCESS_COPY,
            offset=start,
        )
    count = math.prod(info.shape)
    values = torch.frombuffer(
        view, dtype=FLOATS[info.dtype], count=count, offset=info.offset - start
    )
    return values.view(info.shape)


def _check(chunk: Tensor, row: int, name: str) -> None:
    """Raise WorkerError, with the tensor and the place, if a weight is not finite."""
    if torch.isfinite(torch.stack(torch.aminmax(chunk))).all():
        return
    place = torch.nonzero(~torch.isfinite(chunk))[0].tolist()
    value = chunk[tuple(place)].item()
    place[0] += row
    raise WorkerError(
        f"tensor {name} holds {value} at {place} once it is merged: the adapter, or the type "
        f"{str(chunk.dtype).removeprefix('torch.')}, does not fit the base"
    )
