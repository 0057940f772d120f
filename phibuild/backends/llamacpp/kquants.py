"""Q4_K, Q5_K and Q6_K, bit for bit as ggml stores them, in a fifth of its time.

A super-block of 256 weights has one half-precision scale (and minimum), and in whole steps of them
the scales of its 8 or 16 sub-blocks, which are searched for (kquant_affine.py,
kquant_symmetric.py). Where a super-block has a sub-block that ggml treats apart, ggml itself stores
it. Layouts: ggml-common.h, `block_q4_K`, `block_q5_K`, `block_q6_K`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from phibuild.backends.llamacpp.coded import pack_scales
from phibuild.backends.llamacpp.kquant_affine import Found, Levels, mean_squares, search_affine
from phibuild.backends.llamacpp.kquant_store import fit_positive, store_affine, store_symmetric
from phibuild.backends.llamacpp.kquant_symmetric import search_symmetric
from phibuild.backends.llamacpp.layout import BLOCK_TYPES
from phibuild.worker.floats import Bytes, Flags, Floats

_F = np.float32
_NO_IMPORTANCE = np.empty(0, np.float32)
_SUPER = 256


@dataclass(frozen=True)
class _Affine:
    """How Q4_K and Q5_K are searched: levels 0 to `top`, widths of `first` plus some of `step`."""

    top: int
    first: float
    step: float
    steps: int

    def levels(self) -> Levels:
        numbers = np.arange(self.steps + 1, dtype=_F)
        return Levels(self.top, _F(self.first) + _F(self.step) * numbers + _F(self.top))


_PLAIN = {"Q4_K": _Affine(15, -1.0, 0.1, 20), "Q5_K": _Affine(31, -0.5, 0.1, 15)}
_WEIGHED = {"Q4_K": _Affine(15, -0.9, 0.05, 36), "Q5_K": _Affine(31, -0.9, 0.05, 36)}
_TOP_SCALE = 63  # of the scales and minima of sub-blocks, 6 bits each


def quantize(kind: str, rows: Floats, columns: int, out: Bytes, importance: Floats | None) -> Flags:
    """Write `rows` (whole rows of `columns`, a multiple of 256) to `out` in type `kind`; return
    which super-blocks [n] have to be stored by ggml instead.

    `importance` [columns] weighs the squared errors of the rounding.
    """
    block = BLOCK_TYPES[kind]
    blocks = rows.size // _SUPER
    stored = out[: blocks * block.nbytes].reshape(blocks, block.nbytes)
    with np.errstate(all="ignore"):  # what is out of range is given back
        if kind == "Q6_K":
            return _symmetric(rows, stored, importance)
        return _affine(rows, kind, stored, importance)


def find_affine(rows: Floats, kind: str, importance: Floats | None) -> Found:
    """Return scales and minima of the sub-blocks of `rows` for Q4_K or Q5_K."""
    weights = rows.reshape(-1, 32)
    squares, scales, mins, sums = np.empty((4, len(weights)), _F)
    odd = np.empty(len(weights), np.bool_)
    if importance is None:
        search, columns = _PLAIN[kind], _NO_IMPORTANCE
        mean_squares(weights, 1, squares)
    else:
        search, columns = _WEIGHED[kind], importance
        by_block = np.empty(rows.size // _SUPER, _F)
        mean_squares(rows.reshape(-1, _SUPER), 2, by_block)
        squares = np.repeat(by_block, 8)
    found = Found(scales, mins, sums, odd)
    search_affine(weights, squares, columns, search.levels(), found)
    return found


def _affine(rows: Floats, kind: str, stored: Bytes, importance: Floats | None) -> Flags:
    found = find_affine(rows, kind, importance)
    steps, halves = [], []
    for values in (found.scales.reshape(-1, 8), found.mins.reshape(-1, 8)):
        if importance is None:
            step, half = _even_steps(values)
        else:
            step, fitted = np.empty(values.shape, np.uint8), np.empty(len(values), _F)
            fit_positive(values, found.sums.reshape(-1, 8), _TOP_SCALE, step, fitted)
            half = fitted.astype(np.float16)
        steps.append(step)
        halves.append(half)
    for index, half in enumerate(halves):
        stored[:, 2 * index : 2 * index + 2] = half.view(np.uint8).reshape(-1, 2)
    stored[:, 4:16] = pack_scales(*steps)
    high, low = stored[:, 16:48], stored[:, -128:]  # Q4_K has no `high`, and none is written
    scale, low_end = (
        half.astype(_F)[:, None] * step for half, step in zip(halves, steps, strict=True)
    )
    store_affine(rows.reshape(-1, _SUPER), scale, low_end, _PLAIN[kind].top, low, high)
    return np.logical_or(_strange(found.odd, scale), _not_finite(low_end))


def _even_steps(values: Floats) -> tuple[Bytes, NDArray[np.float16]]:
    """Return `values` [n, 8], none negative, in steps [n, 8] of 1/63 of their row's largest, and
    that step [n] in half precision."""
    largest = values.max(axis=1) + _F(0)  # where it is -0, ggml has 0
    inverse = np.where(largest > 0, _F(_TOP_SCALE) / largest, _F(0))
    steps = np.minimum(np.rint(inverse[:, None] * values), _F(_TOP_SCALE)).astype(np.uint8)
    return steps, (largest / _F(_TOP_SCALE)).astype(np.float16)


def _symmetric(rows: Floats, stored: Bytes, importance: Floats | None) -> Flags:
    weights = rows.reshape(-1, 16)
    scales = np.empty(len(weights), _F)
    odd = np.empty(len(weights), np.bool_)
    tries = np.array([_F(0), *(_F(0.1) * _F(step) for step in range(-9, 10) if step)], _F)
    columns = _NO_IMPORTANCE if importance is None else importance
    search_symmetric(weights, columns, -(_F(32) + tries), scales, odd)
    by_block = scales.reshape(-1, 16)
    largest = np.take_along_axis(by_block, np.abs(by_block).argmax(axis=1)[:, None], axis=1)
    inverse = _F(-128) / largest
    half = (_F(1) / inverse).astype(np.float16)
    steps = np.minimum(np.rint(inverse * by_block), _F(127)).astype(np.int8)
    stored[:, 192:208] = steps.view(np.uint8)
    stored[:, 208:] = half.view(np.uint8)
    scale = half.astype(_F) * steps.astype(_F)
    low, high = stored[:, :128], stored[:, 128:192]
    store_symmetric(rows.reshape(-1, _SUPER), scale, low, high)
    return _strange(odd, scale)


def _strange(odd: Flags, scales: Floats) -> Flags:
    """Return which super-blocks have an odd sub-block, or one whose stored scale [n, sub-blocks] is
    zero (ggml keeps the levels of the search there) or not finite."""
    strange: Flags = np.logical_or(odd.reshape(scales.shape), scales == 0).any(axis=1)
    return np.logical_or(strange, _not_finite(scales))


def _not_finite(values: Floats) -> Flags:
    return np.logical_not(np.isfinite(values).all(axis=1))
