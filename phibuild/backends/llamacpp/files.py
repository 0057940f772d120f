"""A GGUF file that is written in pieces, at offsets known beforehand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from phibuild.backends.llamacpp import ggml
from phibuild.backends.llamacpp.header import Value, data_bytes, data_offsets, encode_header
from phibuild.backends.llamacpp.layout import GRIDS, Tensor, row_bytes
from phibuild.worker.codes import CodedWeights
from phibuild.worker.direct_io import OutputFile
from phibuild.worker.protocol import WorkerError


@dataclass
class GgufFile:
    """A file to write. `constants` are the tensors that come from no checkpoint; `importance` has
    the weights of the columns [columns] of those tensors, by their name in the checkpoint, that are
    quantized with some; `coded` those that are on the grid of a type of the file already."""

    path: Path
    values: Sequence[Value]
    tensors: Sequence[Tensor]
    constants: Mapping[str, Sequence[float]]
    importance: Mapping[str, ggml.Floats] = field(default_factory=dict)
    coded: CodedWeights | None = None
    _file: OutputFile | None = None
    _places: dict[str, tuple[Tensor, int]] = field(default_factory=dict)

    def open(self) -> None:
        """Create the file: header, room for the data, constants. Raises WorkerError where there is
        no room."""
        header = encode_header(self.values, self.tensors)
        try:
            self._file = OutputFile(self.path, len(header) + data_bytes(self.tensors))
            self._file.write(header, 0)
            for tensor, offset in zip(self.tensors, data_offsets(self.tensors), strict=True):
                if tensor.source is None:
                    numbers = np.array(self.constants[tensor.name], "<f4")
                    self._file.write(numbers.tobytes(), len(header) + offset)
                else:
                    self._places[tensor.source] = (tensor, len(header) + offset)
        except OSError as error:
            raise self._not_written(error) from error

    def close(self) -> None:
        """Wait until all is written, and close the file. Raises WorkerError for what could not be
        written."""
        assert self._file is not None  # it is open
        try:
            self._file.finish()
        except OSError as error:
            raise self._not_written(error) from error
        finally:
            self._file.close()

    def tensor(self, source: str) -> Tensor:
        """Return the tensor of this file that the checkpoint's tensor `source` becomes."""
        return self._places[source][0]

    def coded_for(self, source: str) -> CodedWeights | None:
        """Return the weights that a tensor is made of where its type has their grid."""
        if self.coded is None or source not in self.coded:
            return None
        return self.coded if GRIDS.get(self.tensor(source).kind) == self.coded.grid else None

    def write_rows(self, source: str, first_row: int, data: bytes | memoryview) -> None:
        """Write the stored rows of a tensor from row `first_row` on. Raises WorkerError."""
        tensor, position = self._places[source]
        assert self._file is not None  # it is open
        try:
            self._file.write(data, position + first_row * row_bytes(tensor.kind, tensor.shape[-1]))
        except OSError as error:
            raise self._not_written(error) from error

    def _not_written(self, error: OSError) -> WorkerError:
        size = data_bytes(self.tensors)
        return WorkerError(f"{self.path.name} ({size:,} bytes) cannot be written: {error.strerror}")
