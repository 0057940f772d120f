"""The search for the scales of K-quants, compiled by numba.

ggml searches the scale of each sub-block by trying some twenty of them over its 16 or 32 weights,
one sub-block after the other; each sum waits for the one before it. Here LANES sub-blocks are
searched at once, a vector register holding the same weight of several: every sub-block has its
operations in ggml's order, in float32 without fused multiply-add, so that all results have the same
bits, and the vector units are busy. Where a sub-block meets what ggml treats apart (equal weights,
no positive scale, values out of range), `odd` is set, and its results mean nothing.

Formulas: ggml-quants.c, `make_qkx2_quants`, `make_qkx3_quants`, `make_qx_quants`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from phibuild.backends.llamacpp.compiled import compiled, nearest_level

LANES = 64
"""Sub-blocks that are searched at once: 64 float32 are 4 to 16 vector registers."""

SMALLEST = np.float32(1e-15)
"""GROUP_MAX_EPS: where no weight is larger, all are zero to ggml."""

_F = np.float32
_LARGEST = np.float32(4194303)  # what can be rounded to a level


@compiled
def _lanes() -> Any:
    # Arrays of their own: of slices of one array the compiler must assume that they overlap.
    return np.empty(LANES, _F)


@compiled
def _rows(size: int) -> Any:
    return np.empty((size, LANES), _F)


@compiled
def mean_squares(weights: Any, factor: float, out: Any) -> None:
    """Write to `out` [n] the mean square of each row of `weights` [n, m], times `factor`."""
    for row in range(weights.shape[0]):
        squares = _F(0)
        for index in range(weights.shape[1]):
            squares += weights[row, index] * weights[row, index]
        out[row] = _F(factor) * squares / _F(weights.shape[1])


@compiled
def search_affine(
    weights: Any,
    squares: Any,
    importance: Any,
    top: int,
    tries: Any,
    scales: Any,
    mins: Any,
    sums: Any,
    odd: Any,
) -> None:
    """Search for each sub-block of `weights` [n, 32] the scale and the minimum with which levels 0
    to `top` fit best: weight = scale * level - min.

    Without `importance` (an empty array) an error counts by its weight's size and that of the
    sub-block, whose mean square is in `squares` [n]; with that of the columns [columns], by it and
    the mean square that `squares` has. `tries` has the widths that are tried, in levels. Fills
    `scales`, `mins`, what a sub-block's errors count in all, `sums`, and `odd`, each [n].
    """
    size = weights.shape[1]
    most = _F(top)
    w, c, levels = _rows(size), _rows(size), _rows(size)
    least, largest, low, total = _lanes(), _lanes(), _lanes(), _lanes()
    first, mean, inverse, scale = _lanes(), _lanes(), _lanes(), _lanes()
    best, by_level, by_square, by_weight = _lanes(), _lanes(), _lanes(), _lanes()
    new_scale, new_low, error = _lanes(), _lanes(), _lanes()
    strange = np.empty(LANES, np.bool_)
    count = weights.shape[0]
    for start in range(0, count, LANES):
        for lane in range(LANES):
            block = min(start + lane, count - 1)
            strange[lane] = not np.isfinite(squares[block])
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
        for lane in range(LANES):
            least[lane] = largest[lane] = w[0, lane]
            total[lane] = c[0, lane]
            first[lane] = c[0, lane] * w[0, lane]
        for i in range(1, size):
            for lane in range(LANES):
                least[lane] = min(least[lane], w[i, lane])
                largest[lane] = max(largest[lane], w[i, lane])
                total[lane] += c[i, lane]
                first[lane] += c[i, lane] * w[i, lane]
        for lane in range(LANES):
            low[lane] = min(least[lane], _F(0))
            inverse[lane] = most / (largest[lane] - low[lane])
            scale[lane] = _F(1) / inverse[lane]
            best[lane] = _F(0)
            strange[lane] |= largest[lane] == low[lane]
        for i in range(size):
            for lane in range(LANES):
                level = nearest_level(inverse[lane] * (w[i, lane] - low[lane]), _F(0), most)
                off = scale[lane] * level + low[lane] - w[i, lane]
                best[lane] += c[i, lane] * (off * off)
        for attempt in range(tries.size):
            for lane in range(LANES):
                inverse[lane] = tries[attempt] / (largest[lane] - low[lane])
                below = abs(inverse[lane] * (least[lane] - low[lane]))
                above = abs(inverse[lane] * (largest[lane] - low[lane]))
                strange[lane] |= not (below <= _LARGEST and above <= _LARGEST)
                by_level[lane] = by_square[lane] = by_weight[lane] = error[lane] = _F(0)
            for i in range(size):
                for lane in range(LANES):
                    level = nearest_level(inverse[lane] * (w[i, lane] - low[lane]), _F(0), most)
                    levels[i, lane] = level
                    counted = c[i, lane] * level
                    by_level[lane] += counted
                    by_square[lane] += counted * level
                    by_weight[lane] += counted * w[i, lane]
            # The best scale and minimum for these levels, by least squares.
            for lane in range(LANES):
                l1, l2, lw = by_level[lane], by_square[lane], by_weight[lane]
                whole = total[lane] * l2 - l1 * l1
                fitted = (total[lane] * lw - first[lane] * l1) / whole
                offset = (l2 * first[lane] - l1 * lw) / whole
                fitted = lw / l2 if offset > _F(0) else fitted
                new_scale[lane], new_low[lane] = fitted, min(offset, _F(0))
                by_level[lane] = whole
            for i in range(size):
                for lane in range(LANES):
                    off = new_scale[lane] * levels[i, lane] + new_low[lane] - w[i, lane]
                    error[lane] += c[i, lane] * (off * off)
            for lane in range(LANES):
                better = (by_level[lane] > _F(0)) & (error[lane] < best[lane])
                best[lane] = error[lane] if better else best[lane]
                scale[lane] = new_scale[lane] if better else scale[lane]
                low[lane] = new_low[lane] if better else low[lane]
        for lane in range(min(LANES, count - start)):
            scales[start + lane] = scale[lane]
            mins[start + lane] = -low[lane]
            sums[start + lane] = total[lane]
            odd[start + lane] = strange[lane] or not (scale[lane] > _F(0))


@compiled
def search_symmetric(weights: Any, importance: Any, tries: Any, scales: Any, odd: Any) -> None:
    """Search for each sub-block of `weights` [n, 16] the scale with which levels -32 to 31 fit
    best. Errors count by the `importance` of the columns [columns], if it is not empty, otherwise
    by the square of the weight. `tries` has minus the width of one side, in levels; the first is
    where the search starts. Fills `scales` and `odd` [n]."""
    size = weights.shape[1]
    w, c = _rows(size), _rows(size)
    largest, signed, scale, best = _lanes(), _lanes(), _lanes(), _lanes()
    inverse, by_weight, by_square = _lanes(), _lanes(), _lanes()
    strange = np.empty(LANES, np.bool_)
    count = weights.shape[0]
    for start in range(0, count, LANES):
        for lane in range(LANES):
            block = min(start + lane, count - 1)
            largest[lane] = signed[lane] = _F(0)
            column = block * size % importance.size if importance.size else 0
            for i in range(size):
                weight = weights[block, i]
                w[i, lane] = weight
                c[i, lane] = importance[column + i] if importance.size else weight * weight
        for i in range(size):
            for lane in range(LANES):
                larger = abs(w[i, lane]) > largest[lane]
                signed[lane] = w[i, lane] if larger else signed[lane]
                largest[lane] = abs(w[i, lane]) if larger else largest[lane]
        for lane in range(LANES):
            strange[lane] = largest[lane] < SMALLEST
        for attempt in range(tries.size):
            for lane in range(LANES):
                inverse[lane] = tries[attempt] / signed[lane]
                by_weight[lane] = by_square[lane] = _F(0)
            for i in range(size):
                for lane in range(LANES):
                    level = nearest_level(inverse[lane] * w[i, lane], _F(-32), _F(31))
                    by_weight[lane] += c[i, lane] * w[i, lane] * level
                    by_square[lane] += c[i, lane] * level * level
            for lane in range(LANES):
                lw, l2 = by_weight[lane], by_square[lane]
                fitted = lw / l2
                if attempt == 0:
                    # All that is finite and positive in the first try is so in the others.
                    strange[lane] |= not (l2 > _F(0) and np.isfinite(lw) and np.isfinite(l2))
                    better = True
                else:
                    better = (l2 > _F(0)) & (lw * lw > best[lane] * l2)
                scale[lane] = fitted if better else scale[lane]
                best[lane] = fitted * lw if better else best[lane]
        for lane in range(min(LANES, count - start)):
            scales[start + lane] = scale[lane]
            odd[start + lane] = strange[lane]
