"""The search for the scales of Q6_K, compiled by numba.

Formulas: ggml-quants.c, `make_qx_quants`. Where a sub-block meets what ggml treats apart, `odd` is
set, and its scale means nothing.
"""

from __future__ import annotations

import numpy as np

from phibuild.backends.llamacpp.compiled import (
    LANES,
    SMALLEST,
    compiled,
    lanes,
    nearest_level,
    rows,
)
from phibuild.worker.floats import Flags, Floats

_F = np.float32


@compiled
def search_symmetric(
    weights: Floats, importance: Floats, tries: Floats, scales: Floats, odd: Flags
) -> None:
    """Search for each sub-block of `weights` [n, 16] the scale with which levels -32 to 31 fit
    best. Errors count by the `importance` of the columns [columns], if it is not empty, otherwise
    by the square of the weight. `tries` has minus the width of one side, in levels; the first is
    where the search starts. Fills `scales` and `odd` [n]."""
    size = weights.shape[1]
    w, c = rows(size), rows(size)
    largest, signed, scale, best = lanes(), lanes(), lanes(), lanes()
    inverse, by_weight, by_square = lanes(), lanes(), lanes()
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
