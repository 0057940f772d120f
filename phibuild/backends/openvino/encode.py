"""A tensor's rows as an IR stores them: floats, or integers with a scale and a zero point.

The integers are those of nncf 3.4 without data (`compress_weights` in the modes int8_asym,
int8_sym, int4_asym and int4_sym), bit for bit: the same operations on float32, in the same order,
as the models that nncf compiles for OpenVINO (nncf/openvino/optimized_functions/models.py). Each
row is worked out by itself, so the bytes do not depend on how rows are grouped.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from phibuild.backends.openvino.layout import ROW, Encoding
from phibuild.worker.codes import CodedRows
from phibuild.worker.floats import Bytes, Floats, pack_nibbles
from phibuild.worker.protocol import WorkerError
from phibuild.worker.rows import Rows, to_float16

Numbers = NDArray[np.number]
"""Floats or integers as an IR has them."""

_EPSILON = np.finfo(np.float32).eps


def encode(rows: Rows, how: Encoding) -> tuple[Numbers, ...]:
    """Return the bytes of each part for these rows. Raises WorkerError if a weight cannot be stored
    so."""
    if how.quantized:
        return _integers(rows, how)
    return (rows.wide if how.kind == "f32" else to_float16(rows),)


def from_codes(rows: CodedRows, how: Encoding) -> tuple[Numbers, ...]:
    """Return the bytes of each part for rows that are on a grid of 4 bits already."""
    codes = rows.codes.reshape(-1)
    if not how.asymmetric:
        return pack_nibbles(codes ^ np.uint8(8)), rows.scales.reshape(-1)  # two's complement
    assert rows.zeros is not None  # the grid has codes of zero
    zeros = rows.zeros.reshape(-1)
    if zeros.size % 2:
        zeros = np.append(zeros, np.uint8(0))
    return pack_nibbles(codes), pack_nibbles(zeros), rows.scales.reshape(-1)


def _integers(rows: Rows, how: Encoding) -> tuple[Numbers, ...]:
    weights = rows.wide.reshape(-1)
    size = rows.values.shape[1] if how.group_size == ROW else how.group_size
    starts = np.arange(0, weights.size, size)
    low = np.minimum.reduceat(weights, starts)
    high = np.maximum.reduceat(weights, starts)
    scale = _scale(low, high, how)
    with np.errstate(over="ignore"):
        stored_scale = scale.astype(np.float16)
    if not np.isfinite(stored_scale).all():
        raise WorkerError(
            f"tensor {rows.name} holds weights that are not finite, or too large for a scale "
            "in fp16; build fp32"
        )
    codes = weights.reshape(-1, size) / scale[:, None]
    if not how.asymmetric:
        return _pack(codes, -(1 << (how.bits - 1)), how.bits), stored_scale
    zero_point = np.clip(-np.rint(low / scale), 0.0, (1 << how.bits) - 1)
    codes += zero_point[:, None]
    return _pack(codes, 0, how.bits), _pack(zero_point, 0, how.bits), stored_scale


def _scale(low: Floats, high: Floats, how: Encoding) -> Floats:
    """Return the scales of groups of these extremes. Symmetric ones are negative where the largest
    weight is a positive one, so that it has the level that only one side has. `low` and `high` are
    widened to include zero if asymmetric."""
    if how.asymmetric:
        np.minimum(low, 0.0, out=low)
        np.maximum(high, 0.0, out=high)
        scale = (high - low) / np.float32((1 << how.bits) - 1)
    else:
        below = np.abs(low)
        scale = np.where(below >= high, below, -high) / np.float32(1 << (how.bits - 1))
    scale[np.abs(scale) < _EPSILON] = _EPSILON
    return scale


def _pack(codes: Floats, lowest: int, bits: int) -> Bytes:
    """Round `codes` in place to the levels from `lowest` on; return them, two in a byte if they
    have 4 bits, the first in the lower half."""
    np.rint(codes, out=codes)
    np.clip(codes, lowest, lowest + (1 << bits) - 1, out=codes)
    levels = codes.astype(np.int8).view(np.uint8) if lowest < 0 else codes.astype(np.uint8)
    levels = levels.reshape(-1)
    if bits == 8:
        return levels
    if levels.size % 2:
        levels = np.append(levels, np.uint8(0))
    levels &= np.uint8(0x0F)
    return pack_nibbles(levels)
