"""Rows of a matrix on their way into several artifacts, for backends that place them themselves.
numpy only."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from phibuild.worker.building import Build
from phibuild.worker.companions import (
    GENERATION_FILES,
    TOKENIZER_FILES,
    complete_generation_config,
    copy_companions,
)
from phibuild.worker.costs import Output
from phibuild.worker.floats import FLOAT16_END, NUMPY_TYPES, AnyFloats, Floats, cast, widen
from phibuild.worker.passes import Chunk, Steps, find_tensors, stream
from phibuild.worker.protocol import WorkerError
from phibuild.worker.safetensors import TensorInfo
from phibuild.worker.tokenizer_check import TOKENIZER

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


class WholeFile(RowFile, Protocol):
    """One that says itself when it is whole."""

    def finish(self) -> None:
        """Write what is not a matrix, and wait until all is there. Raises OSError for what could
        not be."""

    def close(self) -> None:
        """Close it; again is fine."""


File = TypeVar("File", bound=RowFile)
Whole = TypeVar("Whole", bound=WholeFile)


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


class RowBuilder(ABC, Generic[Whole]):
    """A `phibuild.worker.building.Builder` of such files, but for what is its format's own."""

    steps = Steps(weights=1 << 17, chunks=32)
    """Of the pass: a chunk's arrays fit into a core's cache."""

    def __init__(self) -> None:
        self.tensors: dict[str, TensorInfo] = {}

    @abstractmethod
    def begin(self, build: Build[Whole], output: Output) -> Whole:
        """Begin an artifact, whose folder has the tokenizer and config.json."""

    def prepare(self, build: Build[Whole]) -> None:
        self.tensors = tensors_by_name(build)

    def open(self, build: Build[Whole], output: Output) -> Whole:
        shutil.copyfile(build.facts.tokenizer, output.folder / TOKENIZER)
        names = ("config.json", *TOKENIZER_FILES, *GENERATION_FILES)
        copy_companions(build.source, output.folder, names)
        complete_generation_config(output.folder, build.facts.stops)
        build.report.stage("laying out the graph", item=output.item)
        return self.begin(build, output)

    def convert(self, build: Build[Whole], outputs: Sequence[tuple[Output, Whole]]) -> None:
        stream_matrices(build, self.tensors, outputs, self.steps)
        for output, file in outputs:
            if output.error is None:
                with build.costs.alone(output):
                    file.finish()

    def close(self, kept: Whole) -> None:
        kept.close()


def to_float16(rows: Rows, remedy: str = "build fp32, int8 or int4") -> NDArray[np.float16]:
    """Return the rows in fp16. Raises WorkerError, with the remedy, if a value does not fit."""
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
            f"{float(np.abs(wide).max()):.6g}, limit {_FP16_MAX:.0f}); {remedy}"
        )
    return cast(rows.values, rows.dtype, "F16")
