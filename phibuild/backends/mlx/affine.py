"""Affine quantization in numpy, bit for bit that of `mx.quantize` on a CPU, in half the time.

For a group of weights w with extremes lo and hi and n = 2^bits - 1 (mlx/backend/cpu/quantized.cpp):
scale = max((hi - lo) / n, 1e-7), negative unless |lo| > |hi|; edge is the extreme of the larger
magnitude; if q0 = rint(edge / scale) is not 0, scale = edge / q0 and bias = edge, else bias = 0;
codes = clip(rint((w - bias) / scale), 0, n). All in float32.
"""

from __future__ import annotations

import numpy as np

from phibuild.backends.mlx.packing import Codes, pack
from phibuild.worker.floats import AnyFloats, Floats, cast

_EPSILON = np.float32(1e-7)
_QUAD = 4  # weights that move as one item when groups are transposed


class Groups:
    """Weights in groups along their rows, to be quantized to any numbers of bits.

    They lie as [group_size / 4, groups, 4]: what is done with all weights of a group is then done
    along long rows, for which numpy has vector instructions.
    """

    def __init__(self, weights: AnyFloats, dtype: str, group_size: int) -> None:
        """Take a contiguous matrix of safetensors type `dtype` whose width is a multiple of
        `group_size`."""
        self._rows = len(weights)
        quad = np.dtype((np.void, _QUAD * weights.itemsize))
        quads: AnyFloats = weights.reshape(-1, group_size).view(quad)
        values = np.ascontiguousarray(quads.T).view(weights.dtype)
        low, high = _extremes(values)
        self._low: Floats = cast(low, dtype, "F32")
        self._high: Floats = cast(high, dtype, "F32")
        self._values: Floats = cast(values, dtype, "F32")

    def quantize(self, bits: int) -> tuple[Codes, Floats, Floats]:
        """Return the packed codes [rows, bytes], and scale and bias [rows, groups of a row]."""
        low, high, most = self._low, self._high, np.float32((1 << bits) - 1)
        scale = np.maximum((high - low) / most, _EPSILON)
        below = np.abs(low) > np.abs(high)
        np.negative(scale, out=scale, where=~below)
        edge = np.where(below, low, high)
        steps = np.rint(edge / scale)
        exact = steps != 0
        np.divide(edge, steps, out=scale, where=exact)
        bias = np.where(exact, edge, np.float32(0))

        values = self._values - np.repeat(bias, _QUAD)
        values /= np.repeat(scale, _QUAD)
        np.clip(values, np.float32(0), most, out=values)
        np.rint(values, out=values)
        quads = values.astype(np.uint8).view(np.uint32)
        codes = np.ascontiguousarray(quads.T).view(np.uint8)
        shape = (self._rows, -1)
        return pack(codes, bits).reshape(shape), scale.reshape(shape), bias.reshape(shape)


def _extremes(values: AnyFloats) -> tuple[AnyFloats, AnyFloats]:
    """Return the least and the greatest weight of each group.

    Integers are compared, several times as fast as floats: as unsigned ones the bits of floats
    ascend from +0 to +inf, then from -0 to -inf.
    """
    unsigned = values.view(f"u{values.itemsize}")
    signed = values.view(f"i{values.itemsize}")
    last, first = _fold(np.maximum, unsigned), _fold(np.minimum, unsigned)
    greatest = _fold(np.maximum, signed)  # of those that are not negative, if there are any
    low = np.where(last.view(signed.dtype) < 0, last, first)
    high = np.where(greatest < 0, first, greatest.view(unsigned.dtype))
    return low.view(values.dtype), high.view(values.dtype)


def _fold(extreme: np.ufunc, values: AnyFloats) -> AnyFloats:
    """Return the minimum or maximum of each group."""
    a, b, c, d = extreme.reduce(values, axis=0).reshape(-1, _QUAD).T
    folded: AnyFloats = extreme(extreme(a, b), extreme(c, d))
    return folded
