"""The scales of K-quants in steps, and the levels of the weights in bits, compiled by numba.

Formulas: ggml-quants.c, `make_qp_quants` and the ends of `quantize_row_q4_K_ref`,
`quantize_row_q5_K_ref` and `quantize_row_q6_K_ref`; layouts: ggml-common.h.
"""

from __future__ import annotations

import numpy as np

from phibuild.backends.llamacpp.compiled import SMALLEST, compiled, nearest
from phibuild.worker.floats import Bytes, Floats

_F = np.float32


@compiled
def fit_positive(values: Floats, counts: Floats, top: int, levels: Bytes, scales: Floats) -> None:
    """Round the rows of `values` [n, 8], none negative, to levels 0 to `top` of one scale a row,
    errors counting as in `counts` [n, 8]: fill `levels` [n, 8] and `scales` [n]."""
    size = values.shape[1]
    for row in range(values.shape[0]):
        x, c, level = values[row], counts[row], levels[row]
        largest = _F(0)
        for i in range(size):
            largest = max(largest, x[i])
        if largest < SMALLEST:
            level[:] = 0
            scales[row] = _F(0)
            continue
        inverse = best_inverse = _F(top) / largest
        scale, best = _F(1) / inverse, _F(0)
        for i in range(size):
            off = x[i] - scale * _F(nearest(inverse * x[i]))
            best += c[i] * off * off
        for step in range(-4, 5):
            if step == 0:
                continue
            inverse = (_F(0.1) * _F(step) + _F(top)) / largest
            scale, error = _F(1) / inverse, _F(0)
            for i in range(size):
                off = x[i] - scale * _F(min(np.int32(top), nearest(inverse * x[i])))
                error += c[i] * off * off
            if error < best:
                best, best_inverse = error, inverse
        by_weight = by_square = _F(0)
        for i in range(size):
            level[i] = min(np.int32(top), nearest(best_inverse * x[i]))
            by_weight += c[i] * x[i] * _F(level[i])
            by_square += c[i] * _F(level[i]) * _F(level[i])
        for _ in range(5):
            changed = False
            for i in range(size):
                old = _F(level[i])
                lw = by_weight - c[i] * x[i] * old
                l2 = by_square - c[i] * old * old
                if lw > _F(0) and l2 > _F(0):
                    new = min(np.int32(top), nearest(x[i] * l2 / lw))
                    if new != level[i]:
                        lw += c[i] * x[i] * _F(new)
                        l2 += c[i] * _F(new) * _F(new)
                        if lw * lw * by_square > by_weight * by_weight * l2:
                            level[i], by_weight, by_square = new, lw, l2
                            changed = True
            if not changed:
                break
        scales[row] = by_weight / by_square if by_square > _F(0) else _F(0)


@compiled
def store_affine(
    weights: Floats, scales: Floats, mins: Floats, top: int, low: Bytes, high: Bytes
) -> None:
    """Write the levels of `weights` [n, 256] with the stored `scales` and `mins` [n, 8]: their
    lower four bits to `low` [n, 128], the fifth, if `top` has it, to `high` [n, 32]."""
    level = np.empty(256, np.uint8)
    highest = np.int32(top)
    for block in range(weights.shape[0]):
        for part in range(8):
            scale, offset = scales[block, part], mins[block, part]
            for i in range(32 * part, 32 * part + 32):
                near = nearest((weights[block, i] + offset) / scale)
                level[i] = max(np.int32(0), min(highest, near))
        for pair in range(4):
            for i in range(32):
                one, two = level[64 * pair + i], level[64 * pair + 32 + i]
                low[block, 32 * pair + i] = (one & 15) | (two & 15) << 4
        if top > 15:
            for i in range(32):
                bits = np.uint8(0)
                for part in range(8):
                    bits |= (level[32 * part + i] >> 4) << part
                high[block, i] = bits


@compiled
def store_symmetric(weights: Floats, scales: Floats, low: Bytes, high: Bytes) -> None:
    """Write the levels of `weights` [n, 256] with the stored `scales` [n, 16], raised by 32: their
    lower four bits to `low` [n, 128], the upper two to `high` [n, 64]."""
    level = np.empty(256, np.uint8)
    for block in range(weights.shape[0]):
        for part in range(16):
            scale = scales[block, part]
            for i in range(16 * part, 16 * part + 16):
                near = nearest(weights[block, i] / scale)
                level[i] = max(np.int32(-32), min(np.int32(31), near)) + np.int32(32)
        for half in range(2):
            for i in range(32):
                first = 128 * half + i
                a, b = level[first], level[first + 32]
                c, d = level[first + 64], level[first + 96]
                low[block, 64 * half + i] = (a & 15) | (c & 15) << 4
                low[block, 64 * half + 32 + i] = (b & 15) | (d & 15) << 4
                high[block, 32 * half + i] = a >> 4 | b >> 4 << 2 | c >> 4 << 4 | d >> 4 << 6
