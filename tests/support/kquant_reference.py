"""Q4_K and Q5_K as ggml works them out, one number after another: numpy's scalars, each operation
rounded to float32. What phibuild compiles (kquant_affine.py) and ggml itself are compared with it.

Formulas: ggml-quants.c, `make_qkx2_quants`, `make_qkx3_quants`, `make_qp_quants`,
`quantize_row_q4_K_ref`, `quantize_row_q4_K_impl` and the same of q5_K; layouts: ggml-common.h.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

F = np.float32
Floats = NDArray[np.float32]

SUB, SUPER = 32, 256
LARGEST = 4194303  # what ggml can round; of larger numbers and NaN it takes some bits
TOPS = {"Q4_K": 15, "Q5_K": 31}
# How many levels fewer than there are the first width has, the step to the next, and how many.
PLAIN = {"Q4_K": (-1.0, 0.1, 20), "Q5_K": (-0.5, 0.1, 15)}
WEIGHED = {"Q4_K": (-0.9, 0.05, 36), "Q5_K": (-0.9, 0.05, 36)}


class OutOfRange(ArithmeticError):
    """A number that ggml cannot round."""


@dataclass
class Fit:
    """weight = scale * level - minimum; `total` is what a sub-block's errors count in all."""

    scale: Any
    minimum: Any
    total: Any
    levels: list[int]


def search(weights: Floats, counts: Sequence[Any], kind: str, *, weighed: bool) -> Fit:
    """Return the best fit of a sub-block whose squared errors are multiplied by `counts`. Raises
    OutOfRange."""
    top = TOPS[kind]
    first, step, steps = (WEIGHED if weighed else PLAIN)[kind]
    pairs = list(zip(weights, counts, strict=True))
    total, moment = F(0), F(0)
    for x, c in pairs:
        total, moment = total + c, moment + c * x
    low, high = min(weights.min(), F(0)), weights.max()
    if high == low:
        return Fit(F(0), -low, total, [0] * len(weights))
    inverse = F(top) / (high - low)
    scale, best = F(1) / inverse, F(0)
    kept = []
    for x, c in pairs:
        kept.append(level(inverse * (x - low), top))
        off = scale * F(kept[-1]) + low - x
        best += c * (off * off)
    for wider in range(steps + 1):
        inverse = (F(first) + F(step) * F(wider) + F(top)) / (high - low)
        tried = [level(inverse * (x - low), top) for x in weights]
        l1 = l2 = lx = F(0)
        for (x, c), number in zip(pairs, tried, strict=True):
            counted = c * F(number)
            l1, l2, lx = l1 + counted, l2 + counted * F(number), lx + counted * x
        determinant = total * l2 - l1 * l1
        if not determinant > 0:
            continue
        new_scale = (total * lx - moment * l1) / determinant
        new_low = (l2 * moment - l1 * lx) / determinant
        if new_low > 0:
            new_scale, new_low = lx / l2, F(0)
        error = F(0)
        for (x, c), number in zip(pairs, tried, strict=True):
            off = new_scale * F(number) + new_low - x
            error += c * (off * off)
        if error < best:
            best, scale, low, kept = error, new_scale, new_low, tried
    return Fit(scale, -low, total, kept)


def search_super_block(weights: Floats, kind: str, importance: Floats | None) -> list[Fit]:
    """Return the fits of the eight sub-blocks of 256 weights; `importance` [256] is that of their
    columns. Raises OutOfRange."""
    fits = []
    for start in range(0, SUPER, SUB):
        x = weights[start : start + SUB]
        if importance is None:
            mean = np.sqrt(_squares(x) / F(SUB))
            counts = [mean + abs(one) for one in x]
        else:
            mean = F(2) * _squares(weights) / F(SUPER)
            columns = importance[start : start + SUB]
            counts = [q * np.sqrt(mean + one * one) for q, one in zip(columns, x, strict=True)]
        fits.append(search(x, counts, kind, weighed=importance is not None))
    return fits


def encode(weights: Floats, fits: Sequence[Fit], kind: str, *, weighed: bool) -> bytes:
    """Return a super-block with these fits as it is stored. Raises OutOfRange."""
    steps, halves = [], []
    for values in ([fit.scale for fit in fits], [fit.minimum for fit in fits]):
        if weighed:
            found, half = _positive(values, [fit.total for fit in fits], 63)
        else:
            largest = max(F(0), *values)
            inverse = F(63) / largest if largest > 0 else F(0)
            found, half = [level(inverse * one, 63) for one in values], largest / F(63)
        steps.append(found)
        halves.append(np.float16(half))
    scales, mins = steps
    levels: list[int] = []
    for number, fit in enumerate(fits):
        scale = F(halves[0]) * F(scales[number])
        offset = F(halves[1]) * F(mins[number])
        x = weights[SUB * number : SUB * (number + 1)]
        levels += fit.levels if scale == 0 else [level((y + offset) / scale, TOPS[kind]) for y in x]
    header = b"".join(half.tobytes() for half in halves) + _six_bits(scales, mins)
    low, high = bytearray(), bytearray(SUB)
    for pair in range(4):
        for i in range(SUB):
            one, two = levels[64 * pair + i], levels[64 * pair + SUB + i]
            low.append(one % 16 + 16 * (two % 16))
            high[i] |= one // 16 << 2 * pair | two // 16 << (2 * pair + 1)
    return header + (bytes(high) if kind == "Q5_K" else b"") + bytes(low)


def nearest(value: Any) -> int:
    """Return the nearest whole number, ties to even. Raises OutOfRange."""
    if not abs(value) <= LARGEST:
        raise OutOfRange(value)
    return int(np.rint(value))


def level(value: Any, top: int) -> int:
    """Return the same, of those from 0 to `top`."""
    return max(0, min(top, nearest(value)))


def _squares(values: Floats) -> Any:
    total = F(0)
    for x in values:
        total += x * x
    return total


def _positive(values: Sequence[Any], counts: Sequence[Any], top: int) -> tuple[list[int], Any]:
    """Return `values` in whole steps up to `top`, and the step with which they fit best."""
    largest = max(F(0), *values)
    if largest < F(1e-15):
        return [0] * len(values), F(0)
    pairs = list(zip(values, counts, strict=True))

    def error(inverse: Any, limit: int) -> Any:
        total = F(0)
        for x, c in pairs:
            off = x - F(1) / inverse * F(min(limit, nearest(inverse * x)))
            total += c * off * off
        return total

    inverse = F(top) / largest
    best = error(inverse, 1 << 22)
    for step in (-4, -3, -2, -1, 1, 2, 3, 4):
        tried = (F(0.1) * F(step) + F(top)) / largest
        found = error(tried, top)
        if found < best:
            best, inverse = found, tried
    levels = [min(top, nearest(inverse * x)) for x in values]
    lx = l2 = F(0)
    for (x, c), number in zip(pairs, levels, strict=True):
        lx, l2 = lx + c * x * F(number), l2 + c * F(number) * F(number)
    for _ in range(5):
        changed = False
        for i, (x, c) in enumerate(pairs):
            rest_x, rest = lx - c * x * F(levels[i]), l2 - c * F(levels[i]) * F(levels[i])
            if rest_x > 0 and rest > 0:
                new = min(top, nearest(x * rest / rest_x))
                if new != levels[i]:
                    new_x, new_2 = rest_x + c * x * F(new), rest + c * F(new) * F(new)
                    if new_x * new_x * l2 > lx * lx * new_2:
                        levels[i], lx, l2, changed = new, new_x, new_2, True
        if not changed:
            break
    return levels, lx / l2 if l2 > 0 else F(0)


def _six_bits(scales: Sequence[int], mins: Sequence[int]) -> bytes:
    """Return eight scales and eight minima of six bits in twelve bytes."""
    packed = bytearray(12)
    for j in range(4):
        packed[j] = scales[j] | scales[j + 4] >> 4 << 6
        packed[j + 4] = mins[j] | mins[j + 4] >> 4 << 6
        packed[j + 8] = scales[j + 4] % 16 | mins[j + 4] % 16 << 4
    return bytes(packed)
