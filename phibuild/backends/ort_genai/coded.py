"""Products whose weights are on MatMulNBits' grid already, by where their tensors lie in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from phibuild.backends.ort_genai.rounding import Blocks
from phibuild.worker.codes import CodedWeights
from phibuild.worker.floats import pack_nibbles

_MIDDLE = 8


@dataclass(frozen=True)
class CodedProduct:
    """Rows of the matrix `name`, from number `first` on."""

    weights: CodedWeights
    name: str
    first: int

    def blocks(self, outputs: slice) -> Blocks:
        """Return what `rounding.quantize` does for some of the product's outputs."""
        first, count = self.first + outputs.start, outputs.stop - outputs.start
        rows = self.weights.rows(self.name, first, count)
        zeros = rows.zeros
        if zeros is not None:
            if zeros.shape[1] % 2:  # as the kernel fills a row's last byte
                zeros = np.pad(zeros, ((0, 0), (0, 1)), constant_values=_MIDDLE)
            zeros = pack_nibbles(np.ascontiguousarray(zeros))
        return Blocks(pack_nibbles(rows.codes), rows.scales, zeros)


def find_coded(
    source: torch.Tensor, checkpoint: Mapping[str, torch.Tensor], coded: CodedWeights | None
) -> CodedProduct | None:
    """Return where the weights of a product come from, of which `source` [K, N] is the transpose:
    whole rows of one tensor of the checkpoint; None if that is not on a grid."""
    if coded is None:
        return None
    rows, address = source.T, source.data_ptr()
    for name, tensor in checkpoint.items():
        if tensor.dim() != 2 or tensor.shape[1] != rows.shape[1] or name not in coded:
            continue
        offset, odd = divmod(address - tensor.data_ptr(), tensor.shape[1] * tensor.element_size())
        if not odd and offset >= 0 and offset + rows.shape[0] <= tensor.shape[0]:
            return CodedProduct(coded, name, offset)
    return None
