"""A tensor's rows as a Core AI model stores them: floats, or integers with scales.

The integers are those of coreai-opt 0.4 (coreai_utils.quantize_weights, symmetric), bit for bit:
the same operations on float32, in the same order. Scales are stored in fp16, in which a quantized
model is computed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from phibuild.worker.codes import CodedRows
from phibuild.worker.encodings import Encoding
from phibuild.worker.floats import cast, pack_nibbles
from phibuild.worker.protocol import WorkerError
from phibuild.worker.rows import Rows, to_float16

_EPSILON = np.float32(1e-6)
_LARGEST_SCALE = np.float32(65504)  # of fp16


@dataclass(frozen=True)
class Stored:
    """Rows as they are stored: their numbers, and the scales fp16 [rows, blocks] of integers."""

    data: NDArray[np.generic]
    scales: NDArray[np.generic] | None = None


def encode(rows: Rows, how: Encoding) -> Stored:
    """Return rows as a type stores them. Raises WorkerError if a weight cannot be stored so."""
    match how.kind:
        case "FLOAT32":
            return Stored(rows.wide)
        case "FLOAT16":
            return Stored(to_float16(rows))
    wide = rows.wide
    blocks = wide.reshape(len(wide), how.blocks(wide.shape[1]), -1)
    largest = np.abs(blocks).max(axis=2, keepdims=True)
    top = np.float32((1 << (how.bits - 1)) - 1)
    scales = (largest + largest + _EPSILON) / (top + top)
    if not (scales <= _LARGEST_SCALE).all():  # nan too
        raise WorkerError(
            f"tensor {rows.name} holds weights that are not finite, or too large for a scale in "
            "fp16; build fp32"
        )
    codes = blocks / scales
    np.clip(np.round(codes, out=codes), -top, top, out=codes)
    numbers = codes.astype(np.int8).reshape(wide.shape)
    stored = scales[:, :, 0].astype(np.float16)
    if how.kind == "INT8":
        return Stored(numbers, stored)
    return Stored(pack_nibbles(numbers.view(np.uint8) & np.uint8(15)), stored)


def from_codes(rows: CodedRows) -> Stored:
    """Return rows that are on a grid of 4 bits already: two's complement here."""
    return Stored(pack_nibbles(rows.codes ^ np.uint8(8)), cast(rows.scales, "F16", "F16"))
