"""Rows of a matrix on their way into several artifacts, for backends that place them themselves.
numpy only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from phibuild.worker.building import Build
from phibuild.worker.costs import Output
from phibuild.worker.floats import FLOAT16_END, NUMPY_TYPES, AnyFloats, Floats, cast, widen
from phibuild.worker.passes import Chunk, Steps, find_tensors, stream
from phibuild.worker.protocol import WorkerError
from phibuild.worker.safetensors import TensorInfo

_FP16_MAX = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Rows:
    """Consecutive rows [rows, width] of the checkpoint's tensor `name`, in its own type `dtype`;
    `values` are items of `NUMPY_TYPES`."""

    name: str
    dtype: str
    values: AnyFloats

    @cached_property
    def wide(self) -> Floats:
        """The rows as float32, made once."""
        return widen(self.values, self.dtype)


class RowFile(Protocol):
    """An artifact while it is written."""

    def write(self, tensor: TensorInfo, rows: Rows, first: int) -> None:
        """Store rows of a matrix, from row `first` on."""


File = TypeVar("File", bound=RowFile)


def tensors_by_name(build: Build[File]) -> dict[str, TensorInfo]:
    """Return the checkpoint's tensors. Raises WorkerError if they are not the model's."""
    found = find_tensors(build.source, build.arch.tensors(), NUMPY_TYPES)
    return {tensor.name: tensor for tensor in found}


def stream_matrices(
    build: Build[File],
    tensors: Mapping[str, TensorInfo],
    outputs: Sequence[tuple[Output, File]],
    steps: Steps,
) -> None:
    """Read each matrix once and hand its rows to all outputs that have not failed."""
    matrices: Iterable[TensorInfo] = (one for one in tensors.values() if len(one.shape) == 2)

    def store(chunk: Chunk) -> None:
        tensor = chunk.tensor
        values = np.frombuffer(chunk.data, NUMPY_TYPES[tensor.dtype])
        rows = Rows(tensor.name, tensor.dtype, values.reshape(chunk.rows, -1))
        _ = rows.wide  # what all of them need
        for output, file in outputs:
            if output.error is None:
                with build.costs.of(output):
                    file.write(tensor, rows, chunk.first)

    stream(list(matrices), steps, lambda: store, build.left, build.threads, build.report)


def to_float16(rows: Rows) -> NDArray[np.float16]:
    """Return the rows in fp16. Raises WorkerError if a value does not fit into it."""
    if rows.dtype == "F16":
        return rows.values
    wide = rows.wide
    # Infinity and NaN were allowed by the user: phibuild looks for them before it builds.
    if (
        not (wide.max() < FLOAT16_END and wide.min() > -FLOAT16_END)  # nan too
        and (np.abs(wide[np.isfinite(wide)]) >= FLOAT16_END).any()
    ):
        raise WorkerError(
            f"tensor {rows.name} holds values outside of fp16 (largest "
            f"{float(np.abs(wide).max()):.6g}, limit {_FP16_MAX:.0f}); build fp32, int8 or int4"
        )
    return cast(rows.values, rows.dtype, "F16")
