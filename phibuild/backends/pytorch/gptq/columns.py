"""GPTQ's columns: each is rounded, and its error fed into those after it (Frantar et al. 2022,
Algorithm 1, in blocks as there; groups get their scales from the weights as they are by then)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from phibuild.backends.pytorch.gptq.scales import fit
from phibuild.worker.grids import Grid

_BLOCK = 128


@dataclass(frozen=True)
class Quantized:
    """Rows of a matrix on a grid: codes uint8 [R, K], scales fp32 [R, K / group], which the grid's
    type holds exactly, and zeros [R, K / group]: codes, biases, or the middle."""

    codes: Tensor
    scales: Tensor
    zeros: Tensor


def quantize(rows: Tensor, factor: Tensor, importance: Tensor, grid: Grid) -> Quantized:
    """Put fp32 rows [R, K] of a matrix on a grid.

    `factor` is U [K, K] of factor.py, `importance` [K] the diagonal of the Hessian. Rows do not
    depend on each other, but for the last bits of the products that they are part of: the same
    rows give the same bytes on any number of threads.
    """
    columns, size = rows.T.contiguous(), grid.group_size  # a column's weights lie side by side
    width, count = columns.shape
    block = max(_BLOCK // size, 1) * size
    codes = torch.empty(width, count, dtype=torch.uint8)
    scales, zeros = torch.empty(width // size, count), torch.empty(width // size, count)
    for begin in range(0, width, block):
        end = min(begin + block, width)
        here = columns[begin:end]
        errors = torch.empty_like(here)
        for number in range(end - begin):
            column = begin + number
            if column % size == 0:
                group = slice(number, number + size)
                levels = fit(here[group], importance[column : column + size], grid)
                scales[column // size], zeros[column // size] = levels.scale, levels.zero
            code = levels.codes(here[number])
            codes[column] = code
            error = torch.sub(here[number], levels.values(code), out=errors[number])
            error /= factor[column, column]
            here[number + 1 :].addr_(factor[column, column + 1 : end], error, alpha=-1)
        columns[end:].addmm_(factor[begin:end, end:].T, errors, alpha=-1)
    return Quantized(codes.T, scales.T, zeros.T)
