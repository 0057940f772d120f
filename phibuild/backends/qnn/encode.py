"""A matrix's rows as MatMulNBits stores them, by ONNX Runtime's own quantizer.

As onnxruntime-genai's model builder does for fp16 graphs: the weights are cast to fp16, and
`MlasQuantizeBlockwise` (core/mlas/lib/q4_dq.cpp) makes symmetric codes and fp16 scales of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnxruntime.capi._pybind_state import quantize_matmul_4bits, quantize_matmul_8bits

from phibuild.worker.codes import CodedRows
from phibuild.worker.encodings import Encoding
from phibuild.worker.floats import pack_nibbles
from phibuild.worker.protocol import WorkerError
from phibuild.worker.rows import Rows, to_float16

REMEDY = "the NPU computes in fp16: use another backend"


@dataclass(frozen=True)
class Encoded:
    """Rows as they are stored: their numbers, and the scales fp16 [rows, blocks] of integers."""

    data: NDArray[np.generic]
    scales: NDArray[np.generic] | None = None


def encode(rows: Rows, how: Encoding) -> Encoded:
    """Return rows as a type stores them. Raises WorkerError if a weight cannot be stored so."""
    half = to_float16(rows, REMEDY)
    if not how.is_integer:
        return Encoded(half)
    if not np.isfinite(half).all():
        raise WorkerError(f"{rows.name} holds NaN or infinity, for which there are no codes")
    count, width = half.shape
    blocks = how.blocks(width)
    packed = np.zeros((count, blocks, how.group_size * how.bits // 8), np.uint8)
    scales = np.zeros((count, blocks), np.float16)
    unused = np.zeros((count, -(-blocks * how.bits // 8)), np.uint8)
    quantize = quantize_matmul_4bits if how.bits == 4 else quantize_matmul_8bits
    turned = np.ascontiguousarray(half.T)
    quantize(packed, turned, scales, unused, how.group_size, count, width, True)
    return Encoded(packed, scales)


def from_codes(rows: CodedRows) -> Encoded:
    """Return rows that are on a grid of 4 bits already, whose middle is 8 here, too."""
    return Encoded(pack_nibbles(rows.codes), rows.scales)
