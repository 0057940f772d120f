"""The weights of columns' rounding errors that an importance matrix gives to the quantization.

llama-quantize divides the sums by the number of tokens (tools/quantize/quantize.cpp:
`load_imatrix`), in float32; where there were none, all columns weigh the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from phibuild.backends.llamacpp.ggml import Floats
from phibuild.backends.llamacpp.layout import Tensor
from phibuild.backends.llamacpp.matrix import Entry, ImportanceMatrix, misfit, read_activations
from phibuild.backends.llamacpp.matrix_file import read_matrix
from phibuild.worker.protocol import WorkerError


@dataclass(frozen=True)
class Importance:
    """A matrix and its weights [columns] by the tensors' names in GGUF."""

    matrix: ImportanceMatrix
    columns: Mapping[str, Floats]

    def of(self, tensors: Iterable[Tensor]) -> dict[str, Floats]:
        """Return the weights by the tensors' names in the checkpoint. Raises WorkerError if they
        are of another model."""
        tensors = tuple(tensors)
        if why := misfit(self.matrix, tensors):
            raise WorkerError(f"the importance matrix is of another model: it {why}")
        return {
            tensor.source: self.columns[tensor.name]
            for tensor in tensors
            if tensor.source and tensor.name in self.columns
        }


def read_importance(path: Path, sha256: str) -> Importance:
    """Return the importance matrix that the activations in a folder make, or that a file of this
    sha256 holds. Raises WorkerError if there is something else."""
    try:
        if path.is_dir():
            matrix = read_activations(path)
        else:
            matrix, found = read_matrix(path)
            if found != sha256:
                raise ValueError("it was changed since the build began; build again")
    except (OSError, ValueError) as error:
        raise WorkerError(f"the importance matrix {path.name}: {error}") from error
    return Importance(matrix, {name: weights(entry) for name, entry in matrix.entries.items()})


def weights(entry: Entry) -> Floats:
    """Return the weights [columns] that one entry gives."""
    counts = np.array(entry.counts, np.float32).reshape(-1, 1)
    sums = np.frombuffer(entry.sums, "<f4").reshape(len(counts), -1)
    means = np.ones(sums.shape, np.float32)
    np.divide(sums, counts, out=means, where=counts > 0)
    return means.reshape(-1)
