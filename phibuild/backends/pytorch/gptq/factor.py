"""The Hessian of a layer's error, and the factor of its inverse by which GPTQ feeds errors forward.

For a linear layer with inputs x the squared error of its output is quadratic in the error of a row
of its weight, with the Hessian H = E[x xT] for every row (Frantar et al. 2022, arXiv:2210.17323,
section 3). Their Algorithm 1 takes rows of U, upper triangular with inv(H) = UT U.

With the order of columns reversed, H = L LT is the usual Cholesky factorization, and U is inv(L)
with both orders reversed back: (inv(H) = inv(L)T inv(L)). That is one factorization and one
triangular inverse, of half the work of inverting H and factorizing that.
"""

from __future__ import annotations

import torch
from torch import Tensor

from phibuild.worker.protocol import WorkerError

DAMPING = 0.01
"""Of the mean of H's diagonal, added to it: the paper's."""
_PANEL = 1024
_LEAF = 256


class Hessian:
    """The sum of x xT over the inputs x of a linear layer, its columns in reverse; of the symmetric
    matrix the lower triangle, in panels."""

    def __init__(self, columns: int) -> None:
        self._sum = torch.zeros(columns, columns)
        self._tokens = 0

    def add(self, inputs: Tensor) -> None:
        """Add the inputs [..., columns] of some tokens."""
        x = inputs.flatten(0, -2).flip(-1)
        for first in range(0, x.shape[1], _PANEL):
            panel = x[:, first : first + _PANEL]
            self._sum[first:, first : first + _PANEL].addmm_(x[:, first:].T, panel)
        self._tokens += len(x)

    def diagonal(self) -> Tensor:
        """Return the mean square of each input [columns]."""
        return self._sum.diagonal().flip(0) / max(self._tokens, 1)

    def factor(self) -> Tensor:
        """Return U [columns, columns] and give the sum's memory away. Raises WorkerError where the
        inputs were infinite or NaN."""
        diagonal = self._sum.diagonal()
        if not torch.isfinite(diagonal).all():
            raise WorkerError("the inputs of a linear layer hold NaN or infinity in fp32")
        diagonal += DAMPING * float(diagonal.mean()) or 1.0  # 1 where all inputs are 0
        factor = torch.linalg.cholesky(self._sum)
        del self._sum, diagonal
        _invert_lower(factor)
        # The mean instead of the sum would multiply U by a number, which errors do not depend on.
        return factor.flip(0, 1)


def _invert_lower(matrix: Tensor) -> None:
    """Invert a lower triangular matrix in its place, by halves: products of matrices do the
    work."""
    size = len(matrix)
    if size <= _LEAF:
        eye = torch.eye(size, dtype=matrix.dtype)
        matrix.copy_(torch.linalg.solve_triangular(matrix, eye, upper=False))
        return
    half = size // 2
    first, second, corner = matrix[:half, :half], matrix[half:, half:], matrix[half:, :half]
    _invert_lower(first)
    _invert_lower(second)
    corner.copy_(second @ (corner @ first)).neg_()
