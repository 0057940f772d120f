"""The search for the scales of Q6_K, compiled by numba in phases.

Formulas: ggml-quants.c, `make_qx_quants`. Where a sub-block meets what ggml treats apart, `odd` is
set, and its scale means nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from phibuild.backends.llamacpp.compiled import (
    LANES,
    SMALLEST,
    Lanes,
    compiled,
    lanes,
    nearest_level,
    phase,
    rows,
)
from phibuild.worker.floats import Flags, Floats

_F = np.float32


class _Blocks(NamedTuple):
    """LANES sub-blocks: weights and what their squared errors count, [size, LANES]; the largest
    weight with its sign, [LANES]; which are treated apart."""

    weights: Lanes
    counts: Lanes
    signed: Lanes
    strange: Flags


class _Try(NamedTuple):
    """Levels by `inverse` scales: the sums of counts times weights times levels, and of counts
    times squared levels. Each [LANES]."""

    inverse: Lanes
    by_weight: Lanes
    by_square: Lanes


class _Best(NamedTuple):
    """The best scales, and by how much each reduces the squared error. Each [LANES]."""

    scale: Lanes
    gain: Lanes


@compiled
def search_symmetric(
    weights: Floats, importance: Floats, tries: Floats, scales: Floats, odd: Flags
) -> None:
    """Search for each sub-block of `weights` [n, 16] the scale with which levels -32 to 31 fit
    best. Errors count by the `importance` of the columns [columns], if it is not empty, otherwise
    by the square of the weight. `tries` has minus the width of one side, in levels; the first is
    where the search starts. Fills `scales` and `odd` [n]."""
    size = weights.shape[1]
    blocks = _Blocks(rows(size), rows(size), lanes(), np.empty(LANES, np.bool_))
    attempt, best = _Try(lanes(), lanes(), lanes()), _Best(lanes(), lanes())
    for start in range(0, weights.shape[0], LANES):
        _load(blocks, weights, importance, start)
        for number in range(tries.size):
            _round(blocks, attempt, tries[number])
            _keep_better(blocks, attempt, best, number == 0)
        for lane in range(min(LANES, weights.shape[0] - start)):
            scales[start + lane] = best.scale[lane]
            odd[start + lane] = blocks.strange[lane]


@phase
def _load(blocks: _Blocks, weights: Floats, importance: Floats, start: int) -> None:
    """Fill `blocks`; after the last sub-block it is there again in the lanes left."""
    w, c, signed = blocks.weights, blocks.counts, blocks.signed
    count, size = weights.shape
    for lane in range(LANES):
        block = min(start + lane, count - 1)
        signed[lane] = _F(0)
        column = block * size % importance.size if importance.size else 0
        for i in range(size):
            weight = weights[block, i]
            w[i, lane] = weight
            c[i, lane] = importance[column + i] if importance.size else weight * weight
    for i in range(size):
        for lane in range(LANES):
            larger = abs(w[i, lane]) > abs(signed[lane])
            signed[lane] = w[i, lane] if larger else signed[lane]
    for lane in range(LANES):
        blocks.strange[lane] = abs(signed[lane]) < SMALLEST


@phase
def _round(blocks: _Blocks, attempt: _Try, width: np.float32) -> None:
    """Round to levels, of which the largest weight has `width`, and add them up."""
    w, c = blocks.weights, blocks.counts
    inverse, by_weight, by_square = attempt.inverse, attempt.by_weight, attempt.by_square
    for lane in range(LANES):
        inverse[lane] = width / blocks.signed[lane]
        by_weight[lane] = by_square[lane] = _F(0)
    for i in range(w.shape[0]):
        for lane in range(LANES):
            level = nearest_level(inverse[lane] * w[i, lane], _F(-32), _F(31))
            by_weight[lane] += c[i, lane] * w[i, lane] * level
            by_square[lane] += c[i, lane] * level * level


@phase
def _keep_better(blocks: _Blocks, attempt: _Try, best: _Best, first: bool) -> None:
    """Take what fits better than what is best so far, and of the first try what there is."""
    scale, gain = best.scale, best.gain
    for lane in range(LANES):
        lw, l2 = attempt.by_weight[lane], attempt.by_square[lane]
        fitted = lw / l2
        if first:
            # All that is finite and positive in the first try is so in the others.
            blocks.strange[lane] |= not (l2 > _F(0) and np.isfinite(lw) and np.isfinite(l2))
            better = True
        else:
            better = (l2 > _F(0)) & (lw * lw > gain[lane] * l2)
        scale[lane] = fitted if better else scale[lane]
        gain[lane] = fitted * lw if better else gain[lane]
