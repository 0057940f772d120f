"""Q4_0 blocks of weights that are on its grid already (ggml-common.h: `block_q4_0`): a scale in
half precision, then 16 bytes, of which byte j holds code j in its lower half, code j + 16 above."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from phibuild.worker.codes import CodedRows

_WEIGHTS = 32


def q4_0_blocks(rows: CodedRows) -> NDArray[np.uint8]:
    """Return the blocks [blocks, 18] of rows with one scale for 32 weights."""
    halves = rows.codes.reshape(-1, 2, _WEIGHTS // 2)
    blocks = np.empty((len(halves), 2 + _WEIGHTS // 2), np.uint8)
    blocks[:, :2] = rows.scales.reshape(-1, 1).view(np.uint8)
    np.left_shift(halves[:, 1], 4, out=blocks[:, 2:])
    blocks[:, 2:] |= halves[:, 0]
    return blocks
