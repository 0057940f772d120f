"""The search for scales and minima of Q4_K and Q5_K, compiled by numba in phases.

Formulas: ggml-quants.c, `make_qkx2_quants`, `make_qkx3_quants`. Where a sub-block meets what ggml
treats apart (equal weights, no positive scale, values out of range), `odd` is set, and its results
mean nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from phibuild.backends.llamacpp.compiled import (
    LANES,
    Lanes,
    compiled,
    lanes,
    nearest_level,
    phase,
    rows,
)
from phibuild.worker.floats import Flags, Floats

_F = np.float32
_LARGEST = np.float32(4194303)  # what can be rounded to a level


@compiled
def mean_squares(weights: Floats, factor: float, out: Floats) -> None:
    """Write to `out` [n] the mean square of each row of `weights` [n, m], times `factor`."""
    for row in range(weights.shape[0]):
        squares = _F(0)
        for index in range(weights.shape[1]):
            squares += weights[row, index] * weights[row, index]
        out[row] = _F(factor) * squares / _F(weights.shape[1])


class Levels(NamedTuple):
    """Levels 0 to `top`, and the widths [k] that are tried for them, in levels."""

    top: int
    tries: Floats


class Found(NamedTuple):
    """What is found for each of n sub-blocks: weight = scale * level - min, what its errors count
    in all, and whether ggml treats it apart."""

    scales: Floats
    mins: Floats
    sums: Floats
    odd: Flags


class _Blocks(NamedTuple):
    """LANES sub-blocks: arrays [size, LANES], then [LANES]. Squared errors are multiplied by
    `counts`, whose sum is `total`; `first` is that of counts times weights."""

    weights: Lanes
    counts: Lanes
    mean: Lanes
    least: Lanes
    largest: Lanes
    total: Lanes
    first: Lanes
    strange: Flags


class _Fit(NamedTuple):
    """A scale, minus a minimum and their error, each [LANES]."""

    scale: Lanes
    low: Lanes
    error: Lanes


class _Try(NamedTuple):
    """Levels [size, LANES] by `inverse` scales [LANES]; the sums of counts times levels, their
    squares, and weights times levels; and what fits them best, if the determinant is positive."""

    inverse: Lanes
    levels: Lanes
    by_level: Lanes
    by_square: Lanes
    by_weight: Lanes
    determinant: Lanes
    fit: _Fit


@compiled
def search_affine(
    weights: Floats, squares: Floats, importance: Floats, how: Levels, found: Found
) -> None:
    """Search for each sub-block of `weights` [n, 32] the scale and the minimum with which `how`'s
    levels fit best, and fill `found`.

    Without `importance` (an empty array) an error counts by its weight's size and that of the
    sub-block, whose mean square is in `squares` [n]; with that of the columns [columns], by it and
    the mean square that `squares` has.
    """
    size = weights.shape[1]
    most = _F(how.top)
    w, c, levels = rows(size), rows(size), rows(size)
    strange = np.empty(LANES, np.bool_)
    blocks = _Blocks(w, c, lanes(), lanes(), lanes(), lanes(), lanes(), strange)
    best, fit = _Fit(lanes(), lanes(), lanes()), _Fit(lanes(), lanes(), lanes())
    attempt = _Try(lanes(), levels, lanes(), lanes(), lanes(), lanes(), fit)
    for start in range(0, weights.shape[0], LANES):
        _load(blocks, weights, squares, importance, start)
        _add_up(blocks)
        _begin(blocks, attempt, best, most)
        for width in how.tries:
            _round(blocks, attempt, best, width, most)
            _solve(blocks, attempt)
            _keep_better(attempt, best)
        _store(blocks, best, found, start)


@phase
def _load(
    blocks: _Blocks, weights: Floats, squares: Floats, importance: Floats, start: int
) -> None:
    """Fill weights and counts; after the last sub-block it is there again in the lanes left."""
    w, c, mean = blocks.weights, blocks.counts, blocks.mean
    count, size = weights.shape
    for lane in range(LANES):
        block = min(start + lane, count - 1)
        blocks.strange[lane] = not np.isfinite(squares[block])
        mean[lane] = squares[block] if importance.size else np.sqrt(squares[block])
        column = block * size % importance.size if importance.size else 0
        for i in range(size):
            w[i, lane] = weights[block, i]
            c[i, lane] = importance[column + i] if importance.size else _F(0)
    for i in range(size):
        for lane in range(LANES):
            if importance.size:
                c[i, lane] *= np.sqrt(mean[lane] + w[i, lane] * w[i, lane])
            else:
                c[i, lane] = mean[lane] + abs(w[i, lane])


@phase
def _add_up(blocks: _Blocks) -> None:
    """Find the extremes, and the sums that no level changes."""
    w, c = blocks.weights, blocks.counts
    least, largest, total, first = blocks.least, blocks.largest, blocks.total, blocks.first
    for lane in range(LANES):
        least[lane] = largest[lane] = w[0, lane]
        total[lane] = c[0, lane]
        first[lane] = c[0, lane] * w[0, lane]
    for i in range(1, w.shape[0]):
        for lane in range(LANES):
            least[lane] = min(least[lane], w[i, lane])
            largest[lane] = max(largest[lane], w[i, lane])
            total[lane] += c[i, lane]
            first[lane] += c[i, lane] * w[i, lane]


@phase
def _begin(blocks: _Blocks, attempt: _Try, best: _Fit, most: np.float32) -> None:
    """Take the scale and the minimum with which levels reach over all weights."""
    w, c = blocks.weights, blocks.counts
    inverse, scale, low = attempt.inverse, best.scale, best.low
    for lane in range(LANES):
        low[lane] = min(blocks.least[lane], _F(0))
        inverse[lane] = most / (blocks.largest[lane] - low[lane])
        scale[lane] = _F(1) / inverse[lane]
        best.error[lane] = _F(0)
        blocks.strange[lane] |= blocks.largest[lane] == low[lane]
    for i in range(w.shape[0]):
        for lane in range(LANES):
            level = nearest_level(inverse[lane] * (w[i, lane] - low[lane]), _F(0), most)
            off = scale[lane] * level + low[lane] - w[i, lane]
            best.error[lane] += c[i, lane] * (off * off)


@phase
def _round(blocks: _Blocks, attempt: _Try, best: _Fit, width: np.float32, most: np.float32) -> None:
    """Round to levels, of which the weights reach over `width`, and add them up."""
    w, c = blocks.weights, blocks.counts
    inverse, low = attempt.inverse, best.low
    by_level, by_square, by_weight = attempt.by_level, attempt.by_square, attempt.by_weight
    for lane in range(LANES):
        inverse[lane] = width / (blocks.largest[lane] - low[lane])
        below = abs(inverse[lane] * (blocks.least[lane] - low[lane]))
        above = abs(inverse[lane] * (blocks.largest[lane] - low[lane]))
        blocks.strange[lane] |= not (below <= _LARGEST and above <= _LARGEST)
        by_level[lane] = by_square[lane] = by_weight[lane] = _F(0)
    for i in range(w.shape[0]):
        for lane in range(LANES):
            level = nearest_level(inverse[lane] * (w[i, lane] - low[lane]), _F(0), most)
            attempt.levels[i, lane] = level
            counted = c[i, lane] * level
            by_level[lane] += counted
            by_square[lane] += counted * level
            by_weight[lane] += counted * w[i, lane]


@phase
def _solve(blocks: _Blocks, attempt: _Try) -> None:
    """Find the best scale and minimum for the levels, by least squares, and their error."""
    w, c, fit = blocks.weights, blocks.counts, attempt.fit
    for lane in range(LANES):
        l1, l2, lw = attempt.by_level[lane], attempt.by_square[lane], attempt.by_weight[lane]
        total, first = blocks.total[lane], blocks.first[lane]
        whole = total * l2 - l1 * l1
        fitted = (total * lw - first * l1) / whole
        offset = (l2 * first - l1 * lw) / whole
        fit.scale[lane] = lw / l2 if offset > _F(0) else fitted
        fit.low[lane] = min(offset, _F(0))
        fit.error[lane] = _F(0)
        attempt.determinant[lane] = whole
    for i in range(w.shape[0]):
        for lane in range(LANES):
            off = fit.scale[lane] * attempt.levels[i, lane] + fit.low[lane] - w[i, lane]
            fit.error[lane] += c[i, lane] * (off * off)


@phase
def _keep_better(attempt: _Try, best: _Fit) -> None:
    """Take what fits better than what is best so far."""
    fit = attempt.fit
    for lane in range(LANES):
        better = (attempt.determinant[lane] > _F(0)) & (fit.error[lane] < best.error[lane])
        best.error[lane] = fit.error[lane] if better else best.error[lane]
        best.scale[lane] = fit.scale[lane] if better else best.scale[lane]
        best.low[lane] = fit.low[lane] if better else best.low[lane]


@phase
def _store(blocks: _Blocks, best: _Fit, found: Found, start: int) -> None:
    for lane in range(min(LANES, len(found.scales) - start)):
        found.scales[start + lane] = best.scale[lane]
        found.mins[start + lane] = -best.low[lane]
        found.sums[start + lane] = blocks.total[lane]
        found.odd[start + lane] = blocks.strange[lane] or not (best.scale[lane] > _F(0))
