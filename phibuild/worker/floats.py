"""Casts between the float types of weights, rounding to nearest even, and two codes in a byte.

numpy only. An array of BF16, which numpy lacks, is held as its bits. Whether numbers are in the
range of a narrower type is for callers to see to: those beyond it become infinite.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float32]
Bytes: TypeAlias = NDArray[np.uint8]
Flags: TypeAlias = NDArray[np.bool_]
AnyFloats: TypeAlias = NDArray[Any]
"""Numbers of any of `NUMPY_TYPES`, of which the name of their type beside them says which."""

NUMPY_TYPES: dict[str, type[np.generic]] = {
    "BF16": np.uint16,
    "F16": np.float16,
    "F32": np.float32,
}
"""safetensors' name of a float type -> the type that numpy holds it in."""
FLOAT16_END = 65520.0
"""Numbers from here on round to infinity in F16: half a step above its largest."""
FLOAT16_END_BITS = np.uint16(0x4780)
"""The least BF16 (65536) of them."""

# Bits of BF16 (8 of exponent, 7 of mantissa) and of F16 (5 and 10).
_SIGN, _MAGNITUDE = np.uint16(0x8000), np.uint16(0x7FFF)
_SMALLEST_NORMAL = np.uint16((127 - 14) << 7)  # of F16, as BF16: 2^-14
_FIRST_EXPONENT = np.uint16(1 << 7)  # of normal numbers
_MORE_MANTISSA = np.uint16(10 - 7)


def cast(values: AnyFloats, source: str, target: str) -> AnyFloats:
    """Return `values` of the safetensors type `source` as `target`, each of BF16, F16 or F32."""
    if source == target:
        return values
    if (source, target) == ("BF16", "F16"):
        return _bfloat16_to_float16(values)
    wide = widen(values, source)
    if target == "F32":
        return wide
    if target == "F16":
        with np.errstate(over="ignore"):
            return wide.astype(np.float16)
    bits = wide.view(np.uint32)
    return ((bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16).astype(np.uint16)


def widen(values: AnyFloats, source: str) -> Floats:
    """Return `values` of the safetensors type `source` as F32; F32 itself is not copied."""
    if source == "BF16":  # the upper half of a float32
        bits = values.astype(np.uint32)
        bits <<= np.uint32(16)
        return bits.view(np.float32)
    return values.astype(np.float32, copy=False)


def _bfloat16_to_float16(values: NDArray[np.uint16]) -> NDArray[np.float16]:
    # numpy takes thrice as long. BF16 has fewer bits of mantissa than F16, so numbers in the normal
    # range of F16 need another exponent alone; the few besides are left to numpy.
    flat = values.reshape(-1)
    bits = flat & _MAGNITUDE
    bits -= _SMALLEST_NORMAL  # smaller ones wrap around
    others = np.flatnonzero(bits >= FLOAT16_END_BITS - _SMALLEST_NORMAL)
    bits += _FIRST_EXPONENT
    bits <<= _MORE_MANTISSA
    bits |= flat & _SIGN
    halves: NDArray[np.float16] = bits.view(np.float16)
    with np.errstate(over="ignore", invalid="ignore"):
        halves[others] = widen(flat[others], "BF16").astype(np.float16)
    return halves.reshape(values.shape)


def pack_nibbles(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return `codes` below 16 [..., n], n even, two in a byte [..., n / 2], the first in the lower
    half."""
    pairs = codes.view("<u2")
    packed: NDArray[np.uint8] = (pairs | pairs >> np.uint16(4)).astype(np.uint8)
    return packed
