"""What builds a format that has no tools of its own: a folder with the checkpoint's tokenizer, its
architecture, and weights that are made of float32 rows. Needs the package tokenizers."""

from __future__ import annotations

import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from phibuild.worker.building import Build, Check
from phibuild.worker.companions import complete_generation_config, copy_companions
from phibuild.worker.costs import Output
from phibuild.worker.floats import NUMPY_TYPES, Floats, widen
from phibuild.worker.passes import Chunk, Steps, find_tensors, stream
from phibuild.worker.plain_runtime import ARCHITECTURE
from phibuild.worker.protocol import Contents
from phibuild.worker.safetensors import TensorInfo
from phibuild.worker.tokenizer_check import (
    TOKENIZER,
    Facts,
    TokenizerCheck,
    check_tokenizer,
    nothing_to_explain,
)
from phibuild.worker.tokenizer_json import TokenizerJson

_STEPS = Steps(weights=1 << 20)


class PlainBuilder(ABC):
    """A `phibuild.worker.building.Builder`: one pass over the checkpoint for all outputs, tensor by
    tensor, from the first row to the last. `inspect` is the worker's own."""

    def __init__(self, inspect: Callable[[Path], Contents]) -> None:
        self.inspect = inspect

    @abstractmethod
    def write(self, output: Output, tensor: TensorInfo, first: int, rows: Floats) -> None:
        """Store rows of a matrix, or all of a vector, from number `first` on: what is before it has
        been stored. Raises WorkerError if the format cannot hold them."""

    def prepare(self, build: Build[None]) -> None:
        self._tensors = find_tensors(build.source, build.arch.tensors(), NUMPY_TYPES)

    def open(self, build: Build[None], output: Output) -> None:
        shutil.copyfile(build.facts.tokenizer, output.folder / TOKENIZER)
        copy_companions(build.source, output.folder)
        complete_generation_config(output.folder, build.facts.stops)
        text = json.dumps(build.arch.to_json(), indent=1)
        (output.folder / ARCHITECTURE).write_text(text, encoding="utf-8")

    def convert(self, build: Build[None], outputs: Sequence[tuple[Output, None]]) -> None:
        def store(chunk: Chunk) -> None:
            dtype, shape = chunk.tensor.dtype, chunk.tensor.shape
            stored = np.frombuffer(chunk.data, NUMPY_TYPES[dtype])
            rows = widen(stored.reshape(chunk.rows, *shape[1:]), dtype)
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


def _check(folder: Path, facts: Facts) -> TokenizerCheck:
    return check_tokenizer(facts, TokenizerJson(folder), nothing_to_explain)
