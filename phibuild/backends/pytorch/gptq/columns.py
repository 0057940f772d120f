"""GPTQ's columns: each is rounded, and its error fed into those after it (Frantar et al. 2022,
Algorithm 1, in blocks as there; groups get their scales from the weights as they are by then)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from phibuild.backends.pytorch.gptq.scales import Steps, fit, share
from phibuild.worker.grids import Grid

_BLOCK = 128


@dataclass(frozen=True)
class Quantized:
    """Rows of a matrix on a grid: codes uint8 [R, K], scales fp32 [R, K / group], which the grid's
    type holds exactly, and zeros [R, K / group]: codes, biases, or the middle. Where groups share
    steps, scales and zeros are numbers of them, and `steps` fp32 [R, K / span, 2] what they are."""

    codes: Tensor
    scales: Tensor
    zeros: Tensor
    steps: Tensor | None = None


def quantize(rows: Tensor, factor: Tensor, importance: Tensor, grid: Grid) -> Quantized:
    """Put fp32 rows [R, K] of a matrix on a grid.

    `factor` is U [K, K] of factor.py, `importance` [K] the diagonal of the Hessian. Rows do not
    depend on each other, but for the last bits of the products that they are part of: the same
    rows give the same bytes on any number of threads.
    """
    columns, size = rows.T.contiguous(), grid.group_size  # a column's weights lie side by side
    width, count = columns.shape
    block = max(_BLOCK // grid.span, 1) * grid.span
    codes = torch.empty(width, count, dtype=torch.uint8)
    scales, zeros = torch.empty(width // size, count), torch.empty(width // size, count)
    shared = torch.empty(2, width // grid.span if grid.shared else 0, count)
    steps: Steps | None = None
    for begin in range(0, width, block):
        end = min(begin + block, width)
        here = columns[begin:end]
        errors = torch.empty_like(here)
        for number in range(end - begin):
            column = begin + number
            if grid.shared and column % grid.span == 0:
                span = slice(number, number + grid.span)
                steps = share(here[span], importance[column : column + grid.span], grid)
                shared[:, column // grid.span] = torch.stack((steps.scale, steps.bias))
            if column % size == 0:
                group = slice(number, number + size)
                levels = fit(here[group], importance[column : column + size], grid, steps)
                stored = levels.scale, levels.zero
                if steps is not None:
                    stored = steps.numbers(*stored)
                scales[column // size], zeros[column // size] = stored
            code = levels.codes(here[number])
            codes[column] = code
            error = torch.sub(here[number], levels.values(code), out=errors[number])
            error /= factor[column, column]
            here[number + 1 :].addr_(factor[column, column + 1 : end], error, alpha=-1)
        columns[end:].addmm_(factor[begin:end, end:].T, errors, alpha=-1)
    return Quantized(codes.T, scales.T, zeros.T, shared.permute(2, 1, 0) if grid.shared else None)
