"""What builds a format that has no tools of its own: a folder with the checkpoint's tokenizer, and
weights that are made of float32 rows. Needs the package tokenizers."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phibuild.worker.building import Build, Check
from phibuild.worker.companions import complete_generation_config, copy_companions
from phibuild.worker.costs import Output
from phibuild.worker.passes import Chunk, Steps, find_tensors, stream
from phibuild.worker.plain_runtime import TokenizerJson
from phibuild.worker.safetensors import TensorInfo
from phibuild.worker.tokenizer_check import TOKENIZER, Facts, check_tokenizer, nothing_to_explain

_TYPES = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
_STEPS = Steps(weights=1 << 20)


class PlainBuilder(ABC):
    """A `phibuild.worker.building.Builder`: one pass over the checkpoint for all outputs, tensor by
    tensor, from the first row to the last. `inspect` is the worker's own."""

    def __init__(self, inspect: Callable[[Path], dict[str, Any]]) -> None:
        self.inspect = inspect

    @abstractmethod
    def begin(self, build: Build[None], output: Output) -> None:
        """Write what an artifact's folder holds besides its weights and the tokenizer's files."""

    @abstractmethod
    def write(
        self, output: Output, tensor: TensorInfo, first: int, rows: NDArray[np.float32]
    ) -> None:
        """Store rows of a matrix, or all of a vector, from number `first` on: what is before it has
        been stored. Raises WorkerError if the format cannot hold them."""

    def prepare(self, build: Build[None]) -> None:
        self._tensors = find_tensors(build.source, build.arch.tensors(), _TYPES)

    def open(self, build: Build[None], output: Output) -> None:
        shutil.copyfile(build.facts.tokenizer, output.folder / TOKENIZER)
        copy_companions(build.source, output.folder)
        complete_generation_config(output.folder, build.facts.stops)
        self.begin(build, output)

    def convert(self, build: Build[None], outputs: Sequence[tuple[Output, None]]) -> None:
        def store(chunk: Chunk) -> None:
            rows = _widened(chunk)
            for output, _ in outputs:
                if output.error is None:
                    with build.costs.of(output):
                        self.write(output, chunk.tensor, chunk.first, rows)

        stream(self._tensors, _STEPS, lambda: store, build.left, 1, build.report)

    def close(self, kept: None) -> None:  # noqa: B027, since nothing is left open
        pass

    def checker(self) -> Check:
        import tokenizers  # noqa: F401, so that its time counts as loading

        return _check


def _widened(chunk: Chunk) -> NDArray[np.float32]:
    """Return a chunk in float32, of which bfloat16 is the upper half."""
    stored: NDArray[Any] = np.frombuffer(chunk.data, _TYPES[chunk.tensor.dtype])
    rows = stored.reshape(chunk.rows, *chunk.tensor.shape[1:])
    if chunk.tensor.dtype == "BF16":
        rows = np.left_shift(rows, 16, dtype=np.uint32).view(np.float32)
    return rows.astype(np.float32, copy=False)


def _check(folder: Path, facts: Facts) -> dict[str, Any]:
    return check_tokenizer(facts, TokenizerJson(folder), nothing_to_explain)
