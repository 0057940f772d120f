"""Blocks of ggml's types of weights that are on their grid already (layouts: ggml-common.h)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from phibuild.worker.codes import CodedRows
from phibuild.worker.floats import Bytes


def coded_blocks(kind: str, rows: CodedRows) -> Bytes:
    """Return the blocks [blocks, bytes of one] of rows that are on the grid of a type."""
    return _BLOCKS[kind](rows)


def _q4_0(rows: CodedRows) -> Bytes:
    """`block_q4_0`: a scale in half precision, then 16 bytes, of which byte j holds code j in its
    lower half, code j + 16 above."""
    halves = rows.codes.reshape(-1, 2, 16)
    blocks = np.empty((len(halves), 18), np.uint8)
    blocks[:, :2] = rows.scales.reshape(-1, 1).view(np.uint8)
    np.left_shift(halves[:, 1], 4, out=blocks[:, 2:])
    blocks[:, 2:] |= halves[:, 0]
    return blocks


def _q4_k(rows: CodedRows) -> Bytes:
    """`block_q4_K`: both steps in half precision, scales and minima, then 128 bytes, each with the
    codes of two weights that are 32 apart."""
    return np.concatenate((_super_block(rows), _lower_halves(rows)), axis=1)


def _q5_k(rows: CodedRows) -> Bytes:
    """`block_q5_K`: as `block_q4_K`, with 32 bytes before the codes' lower four bits, of which bit
    g of byte i is the fifth of weight i of group g."""
    fifth = (rows.codes >> np.uint8(4)).reshape(-1, 8, 32)
    shifts = np.arange(8, dtype=np.uint8)[:, None]
    high: Bytes = np.bitwise_or.reduce(fifth << shifts, axis=1)
    return np.concatenate((_super_block(rows), high, _lower_halves(rows)), axis=1)


_BLOCKS: dict[str, Callable[[CodedRows], Bytes]] = {"Q4_0": _q4_0, "Q4_K": _q4_k, "Q5_K": _q5_k}


def _super_block(rows: CodedRows) -> Bytes:
    """Return the 16 bytes with which a block of a K-quant begins."""
    assert rows.steps is not None  # its grid has them
    assert rows.zeros is not None
    steps = np.ascontiguousarray(rows.steps).reshape(-1, 2).view(np.uint8)
    scales = rows.scales.view(np.uint8).reshape(-1, 8)
    mins: NDArray[np.uint8] = rows.zeros.reshape(-1, 8)
    return np.concatenate((steps, pack_scales(scales, mins)), axis=1)


def _lower_halves(rows: CodedRows) -> Bytes:
    pairs = (rows.codes & np.uint8(15)).reshape(-1, 4, 2, 32)
    packed: Bytes = pairs[:, :, 0] | pairs[:, :, 1] << np.uint8(4)
    return packed.reshape(-1, 128)


def pack_scales(scales: Bytes, mins: Bytes) -> Bytes:
    """Return scales and minima [n, 8] of six bits each in 12 bytes [n, 12]: those of the first four
    sub-blocks have a byte each, whose upper bits are the upper two of the last four."""
    first, last = slice(0, 4), slice(4, 8)
    return np.concatenate(
        (
            scales[:, first] | (scales[:, last] >> 4) << 6,
            mins[:, first] | (mins[:, last] >> 4) << 6,
            (scales[:, last] & 15) | (mins[:, last] & 15) << 4,
        ),
        axis=1,
    )
