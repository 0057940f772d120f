"""One pass over a checkpoint, several ExecuTorch programs: chunks of rows, each to its place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from phibuild.backends.executorch.encode import encode, from_codes
from phibuild.backends.executorch.inspect import MODEL, inspect
from phibuild.backends.executorch.tokenizer import RUNNER_TOKENIZER, check, runner_tokenizer
from phibuild.backends.executorch.weights import Layout
from phibuild.worker.architecture import Architecture
from phibuild.worker.building import Build, Check
from phibuild.worker.codes import CodedWeights, coded_weights, ready_rows
from phibuild.worker.costs import Output
from phibuild.worker.direct_io import OutputFile
from phibuild.worker.protocol import Contents
from phibuild.worker.requests import Options
from phibuild.worker.rows import RowBuilder, Rows
from phibuild.worker.safetensors import TensorInfo
from phibuild.worker.tokenizer_check import Facts


class ProgramFile:
    """One variant while it is written: its graphs are there, the matrices are to come."""

    def __init__(
        self,
        output: Output,
        tensors: Mapping[str, TensorInfo],
        arch: Architecture,
        facts: Facts,
        coded: CodedWeights | None,
    ) -> None:
        options: Options = output.request["variant"]["options"]
        self._coded = coded
        self._layout = Layout(tensors, arch, options, facts)
        self._file = OutputFile(output.folder / MODEL, self._layout.size)

    def write(self, tensor: TensorInfo, rows: Rows, first: int) -> None:
        """Store `rows` of a matrix, from row `first` on. Raises WorkerError if a weight cannot be
        stored so."""
        name, count = tensor.name, len(rows.values)
        for place in self._layout.places[name]:
            ready = ready_rows(self._coded, name, place.how, first, count)
            stored = from_codes(ready) if ready else encode(rows, place.how)
            self._put(stored.data, place.data, first * stored.data.nbytes // count)
            if stored.scales is not None:
                self._put(stored.scales, place.scales, first * stored.scales.nbytes // count)

    def _put(
        self, data: np.ndarray[tuple[int, ...], np.dtype[np.generic]], at: int, row: int
    ) -> None:
        flat = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        self._file.write(flat.data, at + row)

    def finish(self) -> None:
        """Write what is not a matrix, wait until all is there. Raises OSError for what could not
        be."""
        for offset, data in self._layout.pieces.items():
            self._file.write(data, offset)
        self._file.finish()

    def close(self) -> None:
        """Close the file; again is fine."""
        self._file.close()


class ProgramBuilder(RowBuilder[ProgramFile]):
    """See phibuild.worker.building.Builder."""

    def begin(self, build: Build[ProgramFile], output: Output) -> ProgramFile:
        mended = runner_tokenizer(build.facts.tokenizer)
        if mended is not None:
            (output.folder / RUNNER_TOKENIZER).write_bytes(mended)
        coded = coded_weights(output.request)
        return ProgramFile(output, self.tensors, build.arch, build.facts, coded)

    def checker(self) -> Check:
        return check

    def inspect(self, folder: Path) -> Contents:
        return inspect(folder)
