"""A tensor's rows as an ExecuTorch program stores them: floats, or integers with scales.

The integers are those of torchao 0.18 as ExecuTorch's exporter calls it (hqq_scale_only:
_choose_qparams_and_quantize_scale_only_hqq): the scale of a block starts at its largest weight / 8
(128 of 8 bits) and becomes, up to twenty times, the one with the least squared error for the
integers that it gives. Sums are float32 in another order than torch's (which depends on the
processor): a scale can differ in its last bit, an integer where a weight lies halfway.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from phibuild.worker.codes import CodedRows
from phibuild.worker.encodings import ROW, Encoding
from phibuild.worker.floats import Floats, cast, pack_nibbles
from phibuild.worker.protocol import WorkerError
from phibuild.worker.rows import Rows, to_float16

_ITERATIONS = 20
_EPS = np.finfo(np.float32).eps


@dataclass(frozen=True)
class Stored:
    """Rows as they are stored: their numbers, and the scales fp32 [rows] of INT8 or bf16 (held as
    uint16) [rows, blocks] of INT4."""

    data: NDArray[np.generic]
    scales: NDArray[np.generic] | None = None


def encode(rows: Rows, how: Encoding) -> Stored:
    """Return rows as a type stores them. Raises WorkerError if a weight cannot be stored so."""
    if how.kind == "FLOAT32":
        return Stored(rows.wide)
    if how.kind == "FLOAT16":
        return Stored(to_float16(rows))
    wide = rows.wide
    size = wide.shape[1] if how.group_size == ROW else how.group_size
    largest = (1 << (how.bits - 1)) - 1
    if not np.isfinite(wide).all():
        raise WorkerError(f"tensor {rows.name} holds weights that are not finite; build fp32")
    codes, scales = _least_squares(wide.reshape(-1, size), largest)
    codes = codes.reshape(wide.shape)
    if how.kind == "INT8":
        return Stored(codes, scales)
    blocks = scales.reshape(len(wide), -1)
    return Stored(pack_nibbles((codes + np.int8(8)).view(np.uint8)), cast(blocks, "F32", "BF16"))


def from_codes(rows: CodedRows) -> Stored:
    """Return rows that are on a grid of 4 bits already: XNNPACK's zero point is 8, the grid's
    middle."""
    return Stored(pack_nibbles(rows.codes), rows.scales)


def _least_squares(blocks: Floats, largest: int) -> tuple[NDArray[np.int8], Floats]:
    """Return integers int8 and scales of blocks [N, size]. A block whose scale stays is done: the
    same scale gives the same integers, and these the same scale."""
    scales = np.maximum(np.abs(blocks).max(axis=1) / np.float32(largest + 1), _EPS)
    moving, left, before = np.arange(len(blocks)), blocks, scales.copy()
    for _ in range(_ITERATIONS):
        codes = _rounded(left, before, largest)
        products = np.einsum("ij,ij->i", left, codes)
        squares = np.einsum("ij,ij->i", codes, codes)
        found = np.divide(products, squares, out=before.copy(), where=squares > 0)
        found = np.maximum(found, _EPS)
        scales[moving] = found
        moved = found != before
        if not moved.any():
            break
        moving, left, before = moving[moved], left[moved], found[moved]
    return _rounded(blocks, scales, largest).astype(np.int8), scales


def _rounded(blocks: Floats, scales: Floats, largest: int) -> Floats:
    codes = blocks / scales[:, None]
    np.rint(codes, out=codes)
    return np.clip(codes, -largest - 1, largest, out=codes)
