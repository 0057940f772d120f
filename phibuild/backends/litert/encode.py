"""A tensor's rows as a LiteRT model stores them: floats, or integers with scales.

The integers are those of ai-edge-quantizer 0.10 (min_max_uniform_quantize, symmetric), bit for bit:
the same operations on float32, in the same order. One thing is better: where the scale of a block
would round to 0 in fp16, which LiteRT's XNNPACK delegate refuses, it is fp16's smallest number.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from phibuild.worker.codes import CodedRows
from phibuild.worker.encodings import Encoding
from phibuild.worker.floats import Flags, cast, pack_nibbles
from phibuild.worker.protocol import WorkerError
from phibuild.worker.rows import Rows, to_float16

_LEAST_BOUND = np.float32(1e-9)
_SMALLEST = np.float32(2.0**-24)  # of fp16
_LARGEST_SCALE = np.float32(65280)  # of both fp16 and bf16


@dataclass(frozen=True)
class Stored:
    """Rows as they are stored: their numbers, and the scales fp32 [rows] of INT8 or fp16 [rows,
    blocks] of INT4."""

    data: NDArray[np.generic]
    scales: NDArray[np.float32] | NDArray[np.float16] | None = None


def encode(rows: Rows, how: Encoding) -> Stored:
    """Return rows as a type stores them. Raises WorkerError if a weight cannot be stored so."""
    match how.kind:
        case "FLOAT32":
            return Stored(rows.wide)
        case "FLOAT16":
            return Stored(to_float16(rows))
        case "INT8":
            return _int8(rows)
        case _:
            return _int4(rows, how.group_size)


def from_codes(rows: CodedRows) -> Stored:
    """Return rows that are on a grid of 4 bits already, with scales in bf16, which fp16 holds."""
    codes = rows.codes ^ np.uint8(8)  # two's complement
    scales = np.maximum(cast(rows.scales, "BF16", "F16"), np.float16(_SMALLEST))
    return Stored(pack_nibbles(codes), scales)


def _int8(rows: Rows) -> Stored:
    scale = np.maximum(np.abs(rows.wide).max(axis=1), _LEAST_BOUND) / np.float32(127)
    _check(rows, np.isfinite(scale))
    codes = rows.wide / scale[:, None]
    np.clip(np.rint(codes, out=codes), -127, 127, out=codes)
    return Stored(codes.astype(np.int8), scale)


def _int4(rows: Rows, group_size: int) -> Stored:
    blocks = rows.wide.reshape(len(rows.values), -1, group_size)
    scale = np.maximum(np.abs(blocks).max(axis=2), _LEAST_BOUND) / np.float32(7)
    _check(rows, scale <= _LARGEST_SCALE)
    stored = np.maximum(cast(cast(scale, "F32", "BF16"), "BF16", "F16"), np.float16(_SMALLEST))
    codes = blocks / stored.astype(np.float32)[:, :, None]
    np.clip(np.rint(codes, out=codes), -8, 7, out=codes)
    nibbles = codes.astype(np.int8).view(np.uint8).reshape(len(rows.values), -1)
    nibbles &= np.uint8(15)
    return Stored(pack_nibbles(nibbles), stored)


def _check(rows: Rows, fit: Flags) -> None:
    if not fit.all():
        raise WorkerError(
            f"tensor {rows.name} holds weights that are not finite, or too large for a scale in "
            "fp16; build fp32"
        )
