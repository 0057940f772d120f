"""The file of an artifact: a model, or a bundle whose last section is one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from phibuild.backends.litert.bundle import Bundle
from phibuild.backends.litert.model import Model, Place
from phibuild.worker.direct_io import OutputFile

BUNDLE, MODEL = "model.litertlm", "model.tflite"
"""Names of the file, by what it is."""


class ModelFile:
    """A file with room for a model's weights; the rest is written last. Any thread may write."""

    def __init__(self, model: Model, file: OutputFile, bundle: Bundle | None, size: int) -> None:
        self._model, self._file, self._bundle, self._size = model, file, bundle, size
        self._begin = bundle.begin if bundle else 0

    def write(self, place: Place, data: NDArray[np.generic], row: int, rows: int) -> None:
        """Write a piece of a weight of `rows` rows, from `row` on."""
        start = place.nbytes * row // rows
        if start + data.nbytes > place.nbytes:
            raise ValueError(f"{start + data.nbytes} bytes written to {place.nbytes}")
        flat = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        self._file.write(flat.data, self._begin + place.offset + start)

    def finish(self) -> None:
        """Write what is not a weight, and wait until all is there. Raises OSError for what could
        not be."""
        head, size = self._model.pack()
        assert size == self._size
        pieces = {self._begin: head}
        if self._bundle is not None:
            pieces |= self._bundle.pieces(size)
        for offset, data in pieces.items():
            self._file.write(data, offset)
        self._file.finish()

    def close(self) -> None:
        """Close the file; again is fine."""
        self._file.close()
