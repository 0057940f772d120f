"""Weights that were put on a grid, in a folder: `layer-00000.safetensors`, ..., `head.safetensors`.

Of each matrix NAME [R, K] a file has NAME.codes, U8 [R, K / 2] (two codes in a byte, the first in
the lower half; [R, K] of more than 4 bits), NAME.scales in the grid's type [R, K / group] and, as
its zeros are, NAME.zeros U8 or NAME.biases in the scales' type, both [R, K / group]. Where groups
share steps, scales and biases are U8, numbers of steps, and NAME.steps [R, K / span, 2] has what
the two steps are, in the grid's type. numpy only.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phibuild.worker.companions import read_json
from phibuild.worker.encodings import Encoding
from phibuild.worker.floats import NUMPY_TYPES, AnyFloats, Floats, cast, pack_nibbles
from phibuild.worker.grids import Grid
from phibuild.worker.protocol import WorkerError
from phibuild.worker.requests import BuildItem
from phibuild.worker.safetensors import (
    ITEM_BYTES,
    SINGLE,
    SafetensorsWriter,
    TensorInfo,
    read_header,
)

HEAD = "head.safetensors"
META = "meta.json"
"""Of the step that made them; `grid` is theirs."""
_PART = ".part"
Codes = NDArray[np.uint8]


def layer_file(layer: int) -> str:
    return f"layer-{layer:05d}.safetensors"


@dataclass(frozen=True)
class Rows:
    """Rows of a matrix on a grid: codes uint8 [R, K], scales and zeros fp32 [R, G]; with shared
    steps these are numbers of steps, and `steps` fp32 [R, K / span, 2] is what they are."""

    codes: Codes
    scales: Floats
    zeros: Floats
    steps: Floats | None = None


def sweep_parts(folder: Path) -> None:
    """Remove what a run that was killed has left beside the files that it finished."""
    for room in folder.glob(f"*{_PART}"):
        shutil.rmtree(room)


class CodeWriter:
    """One file, which is there under its name once it is finished, or not at all."""

    def __init__(
        self, folder: Path, file: str, grid: Grid, shapes: Mapping[str, tuple[int, int]]
    ) -> None:
        self._target, self._grid = folder / file, grid
        self._room = folder / f"{file}{_PART}"
        self._room.mkdir(parents=True)
        entries = [entry for name, shape in shapes.items() for entry in _entries(name, shape, grid)]
        entries.sort(key=lambda entry: -ITEM_BYTES[entry[1]])  # so that all are aligned
        self._writer = SafetensorsWriter(self._room, entries, metadata={"format": "np"})

    def write(self, name: str, first: int, rows: Rows) -> None:
        """Store rows of a matrix from number `first` on."""
        grid, codes, scales, zeros = self._grid, rows.codes, rows.scales, rows.zeros
        codes = np.ascontiguousarray(codes)
        self._put(f"{name}.codes", first, pack_nibbles(codes) if grid.bits <= 4 else codes)
        if rows.steps is not None:
            for part, numbers in (("scales", scales), ("biases", zeros)):
                self._put(f"{name}.{part}", first, np.ascontiguousarray(numbers).astype(np.uint8))
            steps = np.ascontiguousarray(rows.steps)
            self._put(f"{name}.steps", first, cast(steps, "F32", grid.scale))
            return
        self._put(f"{name}.scales", first, cast(np.ascontiguousarray(scales), "F32", grid.scale))
        if grid.zero == "code":
            self._put(f"{name}.zeros", first, np.ascontiguousarray(zeros).astype(np.uint8))
        if grid.zero == "bias":
            self._put(f"{name}.biases", first, cast(np.ascontiguousarray(zeros), "F32", grid.scale))

    def _put(self, name: str, first: int, rows: NDArray[Any]) -> None:
        self._writer.write(name, rows.data, first * (rows.nbytes // len(rows)))

    def finish(self) -> None:
        """Put the file in its place. Raises OSError."""
        self._writer.finish()
        self._writer.close()
        (self._room / SINGLE).rename(self._target)

    def close(self) -> None:
        self._writer.close()
        shutil.rmtree(self._room, ignore_errors=True)


@dataclass(frozen=True)
class CodedRows:
    """Rows of a matrix as its grid has them: codes uint8 [R, K], scales [R, G] in the grid's type
    (as numpy holds it), zeros uint8 [R, G] or biases like scales, None where all are the middle.
    With shared steps scales and zeros are uint8, `steps` [R, K / span, 2] in the grid's type."""

    codes: Codes
    scales: AnyFloats | Codes
    zeros: NDArray[Any] | None
    steps: AnyFloats | None = None


class CodedWeights:
    """The matrices of a folder that were put on `grid`. Raises WorkerError where they are not
    those that it promises."""

    def __init__(self, folder: Path, grid: Grid) -> None:
        self.grid = grid
        self._tensors: dict[str, TensorInfo] = {}
        for path in sorted(folder.glob("*.safetensors")):
            self._tensors.update(read_header(path))
        paths = {info.path for info in self._tensors.values()}
        self._files = {path: np.memmap(path, np.uint8, mode="r") for path in paths}

    def __contains__(self, name: object) -> bool:
        return f"{name}.codes" in self._tensors

    def rows(self, name: str, first: int, count: int) -> CodedRows:
        """Return `count` rows of a matrix from number `first` on."""
        grid = self.grid
        codes = self._read(f"{name}.codes", first, count).view(np.uint8)
        if grid.bits <= 4:
            codes = np.stack([codes & np.uint8(15), codes >> np.uint8(4)], -1).reshape(count, -1)
        scales = self._read(f"{name}.scales", first, count)
        suffix = {"middle": None, "code": "zeros", "bias": "biases"}[grid.zero]
        zeros = self._read(f"{name}.{suffix}", first, count) if suffix else None
        steps = self._read(f"{name}.steps", first, count) if grid.shared else None
        return CodedRows(codes, scales, zeros, steps)

    def _read(self, name: str, first: int, count: int) -> NDArray[Any]:
        info = self._tensors.get(name)
        if info is None:
            raise WorkerError(f"{name} is not among the weights that were quantized")
        row = info.nbytes // info.shape[0]
        data = self._files[info.path][info.offset + first * row :][: count * row]
        kind = NUMPY_TYPES.get(info.dtype, np.uint8)
        return np.array(data).view(kind).reshape(count, *info.shape[1:])


def ready_rows(
    coded: CodedWeights | None, name: str, how: Encoding, first: int, count: int
) -> CodedRows | None:
    """Return rows of a matrix that were put on the grid of the type `how` already; None where they
    are to be encoded."""
    if coded is None or name not in coded or not how.is_on(coded.grid):
        return None
    return coded.rows(name, first, count)


def coded_weights(item: BuildItem) -> CodedWeights | None:
    """Return the weights that an artifact is made of, None where it is made of the checkpoint's."""
    folder = item.get("codes")
    if folder is None:
        return None
    return CodedWeights(Path(folder), Grid.from_json(read_json(Path(folder, META))["grid"]))


def _entries(
    name: str, shape: tuple[int, int], grid: Grid
) -> list[tuple[str, str, tuple[int, ...]]]:
    rows, columns = shape
    groups = (rows, columns // grid.group_size)
    packed = columns // 2 if grid.bits <= 4 else columns
    if grid.shared:
        return [
            (f"{name}.codes", "U8", (rows, packed)),
            (f"{name}.scales", "U8", groups),
            (f"{name}.biases", "U8", groups),
            (f"{name}.steps", grid.scale, (rows, columns // grid.span, 2)),
        ]
    entries: list[tuple[str, str, tuple[int, ...]]] = [
        (f"{name}.codes", "U8", (rows, packed)),
        (f"{name}.scales", grid.scale, groups),
    ]
    if grid.zero == "code":
        entries.append((f"{name}.zeros", "U8", groups))
    if grid.zero == "bias":
        entries.append((f"{name}.biases", grid.scale, groups))
    return entries
