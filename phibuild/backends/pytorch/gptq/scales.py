"""Scales and zeros of groups of weights, searched for the least error by the Hessian's diagonal.

Each is rounded to what the format stores before it is tried, so that what is chosen is what the
runtime will compute with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from phibuild.worker.grids import STEPS, Grid

_STORED = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
FACTORS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)
"""Of the range that holds all weights of a group: a narrower one clips some and serves the others
better."""


@dataclass(frozen=True)
class Steps:
    """What the groups of a span share: a step of scales and one of biases, [R] each, as the grid
    stores them."""

    scale: Tensor
    bias: Tensor

    def numbers(self, scale: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return how many steps [R] are nearest to scales and biases [R] of one group."""
        return _whole(scale, self.scale), _whole(-bias, self.bias)

    def values(self, scale: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scales and biases of so many steps."""
        return scale * self.scale, -(bias * self.bias)


def _whole(values: Tensor, step: Tensor) -> Tensor:
    inverse = torch.where(step == 0, 0, 1 / step)
    return (values * inverse).round_().clamp_(0, STEPS)


@dataclass
class Levels:
    """What the codes of one group of each of R rows mean: scales [R], and zeros [R], the codes of
    zero or the biases."""

    grid: Grid
    scale: Tensor
    zero: Tensor

    @classmethod
    def stored(cls, grid: Grid, scale: Tensor, zero: Tensor, steps: Steps | None = None) -> Levels:
        """Return the levels whose scales and biases are rounded to the grid's type, or to whole
        steps; where groups share steps that are not chosen yet, to nothing."""
        if steps is not None:
            return cls(grid, *steps.values(*steps.numbers(scale, zero)))
        if grid.shared:
            return cls(grid, scale, zero.clamp(max=0))
        kind = _STORED[grid.scale]
        if grid.zero == "bias":
            zero = zero.to(kind).float()
        return cls(grid, scale.to(kind).float(), zero)

    def codes(self, weights: Tensor) -> Tensor:
        """Return the nearest codes of weights [..., R], as floats."""
        inverse = torch.where(self.scale == 0, 0, 1 / self.scale)
        if self.grid.zero == "bias":
            steps = (weights - self.zero) * inverse
        else:
            steps = weights * inverse + self.zero
        return steps.round_().clamp_(0, self.grid.top)

    def values(self, codes: Tensor) -> Tensor:
        """Return the weights that codes [..., R] stand for."""
        if self.grid.zero == "bias":
            return codes * self.scale + self.zero
        return (codes - self.zero) * self.scale


def share(weights: Tensor, importance: Tensor, grid: Grid) -> Steps:
    """Return the steps for spans of weights [span, R], whose squared errors count by `importance`
    [span]: the largest scale of a span's groups, and the lowest bias, have all of them."""
    size = grid.group_size
    levels = [
        fit(weights[start : start + size], importance[start : start + size], grid)
        for start in range(0, grid.span, size)
    ]
    kind = _STORED[grid.scale]
    scale = torch.stack([one.scale for one in levels]).amax(0)
    bias = torch.stack([one.zero for one in levels]).amin(0)
    return Steps((scale / STEPS).to(kind).float(), (-bias / STEPS).to(kind).float())


def fit(weights: Tensor, importance: Tensor, grid: Grid, steps: Steps | None = None) -> Levels:
    """Return the levels for groups of weights [group, R], whose squared errors count by
    `importance` [group]; their scales and biases are whole `steps`, where those are chosen."""
    low, high = weights.amin(0), weights.amax(0)
    importance = importance[:, None]
    best: Levels | None = None
    least = torch.empty(0)

    def attempt(scale: Tensor, zero: Tensor) -> None:
        nonlocal best, least
        levels = Levels.stored(grid, scale, zero, steps)
        difference = levels.values(levels.codes(weights)).sub_(weights)
        error = difference.square_().mul_(importance).sum(0)
        if best is None:
            best, least = levels, error
            return
        better = error < least
        best.scale = torch.where(better, levels.scale, best.scale)
        best.zero = torch.where(better, levels.zero, best.zero)
        least = torch.where(better, error, least)

    start = STARTS[grid.zero]
    for factor in FACTORS:
        attempt(*start(low, high, factor, grid))
    assert best is not None  # there are factors
    for _ in range(2):
        attempt(*_least_squares(weights, importance, best))
    return best


def nearest(rows: Tensor, grid: Grid) -> Tensor:
    """Return fp32 rows [R, K] as the nearest of what a grid without shared steps holds, each group
    by the scale that has the least squared error."""
    groups = rows.reshape(-1, grid.group_size).T.contiguous()
    levels = fit(groups, torch.ones(grid.group_size), grid)
    return levels.values(levels.codes(groups)).T.reshape(rows.shape)


def _around_middle(low: Tensor, high: Tensor, factor: float, grid: Grid) -> tuple[Tensor, Tensor]:
    if grid.negative:
        scale = torch.where(-low >= high, low, high) * (-factor / grid.middle)
    else:
        scale = torch.maximum(-low, high) * (factor * 2 / grid.top)
    return scale, torch.full_like(scale, grid.middle)


def _with_code(low: Tensor, high: Tensor, factor: float, grid: Grid) -> tuple[Tensor, Tensor]:
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = (high - low) * (factor / grid.top)
    zero = torch.where(scale == 0, 0, -low * factor / scale).round_().clamp_(0, grid.top)
    return scale, zero


def _with_bias(low: Tensor, high: Tensor, factor: float, grid: Grid) -> tuple[Tensor, Tensor]:
    if grid.shared:  # no bias is above zero
        low = low.clamp(max=0)
    scale = (high - low) * (factor / grid.top)
    return scale, (low + high) / 2 - scale * (grid.top / 2)


STARTS: dict[str, Callable[[Tensor, Tensor, float, Grid], tuple[Tensor, Tensor]]] = {
    "middle": _around_middle,
    "code": _with_code,
    "bias": _with_bias,
}
"""Kind of a grid's zero -> scales and zeros [R] of groups with extremes low and high [R], a factor
of whose range is to be held."""


def _least_squares(weights: Tensor, importance: Tensor, levels: Levels) -> tuple[Tensor, Tensor]:
    """Return the scale, and the bias, that are best for the codes that levels give."""
    codes = levels.codes(weights)
    if levels.grid.zero != "bias":
        codes -= levels.zero
        weighed = codes * importance
        squares = (weighed * codes).sum(0)
        scale = (weighed * weights).sum(0) / squares
        return torch.where(squares > 0, scale, levels.scale), levels.zero
    total = importance.sum()
    if not total:
        return levels.scale, levels.zero
    mean_code = (codes * importance).sum(0) / total
    mean_weight = (weights * importance).sum(0) / total
    centred = codes - mean_code
    weighed = centred * importance
    squares = (weighed * centred).sum(0)
    scale = torch.where(squares > 0, (weighed * (weights - mean_weight)).sum(0) / squares, 0)
    scale = torch.where(squares > 0, scale, levels.scale)
    return scale, mean_weight - scale * mean_code
