"""Codes of 2 to 8 bits, packed as MLX packs them: back to back from the lowest bit, so that 8 codes
fill as many bytes as a code has bits. numpy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from phibuild.worker.floats import pack_nibbles

Codes = NDArray[np.uint8]
# Bytes that 8 codes fill -> the integer of that size.
_INTEGERS = {2: np.uint16, 4: np.uint32}


def pack(codes: Codes, bits: int) -> Codes:
    """Return the bytes [..., n * bits / 8] that hold `codes` [..., n] (below 2^bits, n a multiple
    of 8)."""
    if bits == 8:
        return codes
    if bits == 4:  # what follows gives the same in four times the time
        return pack_nibbles(codes)
    # 8 codes, one to a byte, are one number: halves of each pair of lanes move together, thrice.
    eight = codes.view(np.uint64)
    for lane in (8, 16, 32):
        width = lane * bits // 8
        high = eight & _lanes(width, lane, lane)
        high >>= np.uint64(lane - width)
        eight = eight & _lanes(width, lane, 0)
        eight |= high
    if bits in _INTEGERS:
        return eight.astype(_INTEGERS[bits]).view(np.uint8)
    octets = eight.view(np.uint8).reshape(*eight.shape, 8)[..., :bits]
    return octets.reshape(*eight.shape[:-1], -1)


def unpack(packed: Codes, bits: int) -> Codes:
    """Return the codes [..., n] that are packed in bytes [..., n * bits / 8]."""
    if bits == 8:
        return packed
    if bits in _INTEGERS:
        eight = packed.view(_INTEGERS[bits]).astype(np.uint64)
    else:
        octets = np.zeros((*packed.shape[:-1], packed.shape[-1] // bits, 8), np.uint8)
        octets[..., :bits] = packed.reshape(*octets.shape[:-1], bits)
        eight = octets.view(np.uint64)[..., 0]
    for lane in (32, 16, 8):
        width = lane * bits // 8
        high = eight & _lanes(width, lane, width)
        high <<= np.uint64(lane - width)
        eight &= _lanes(width, lane, 0)
        eight |= high
    return eight.view(np.uint8)


def _lanes(width: int, lane: int, first: int) -> np.uint64:
    """Return a mask of `width` bits from bit `first` on, again after every two lanes."""
    return np.uint64(sum(((1 << width) - 1) << start for start in range(first, 64, 2 * lane)))
