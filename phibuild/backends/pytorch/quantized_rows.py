"""Rows of quantized matrices as floats, by compressed-tensors' own code: to be imported where there
are some, since that package takes a tenth of a second."""

from __future__ import annotations

from collections.abc import Callable

import torch
from compressed_tensors.compressors.pack_quantized import unpack_from_int32
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import dequantize
from torch import Tensor

from phibuild.backends.pytorch.memory import CHUNK_ROWS, DEQUANTIZED_ELEMENTS
from phibuild.worker.json_values import JsonDict

Rows = Callable[[int, int], Tensor]
"""(number of the first, how many) -> these rows of a tensor as it is stored."""


def read_arguments(how: JsonDict) -> QuantizationArgs:
    """Return what a `quantization_config` says of weights, or of what a layer takes in."""
    return QuantizationArgs.model_validate(how)


def fill_scaled(out: Tensor, first: int, codes: Rows, scales: Rows, how: JsonDict) -> None:
    """Fill `out` [R, C] (fp32) with rows from number `first` on, of codes that have a byte each."""
    arguments = read_arguments(how)
    step = max(DEQUANTIZED_ELEMENTS // out.shape[1], 1)
    for row in range(0, len(out), step):
        count = min(step, len(out) - row)
        rows = codes(first + row, count), scales(first + row, count)
        out[row : row + count].copy_(dequantize(*rows, None, arguments))


def fill_packed(
    out: Tensor, first: int, packed: Rows, scales: Rows, zero_points: Rows, how: JsonDict
) -> None:
    """Fill `out` [R, C] (fp32) with rows from number `first` on, as
    `CompressedTensorsConfig(dequantize=True)` does: in the dtype of the scales. Codes are packed
    along rows, zero points down columns."""
    arguments, columns = read_arguments(how), out.shape[1]
    bits = arguments.num_bits
    step = max(DEQUANTIZED_ELEMENTS // columns // CHUNK_ROWS, 1) * CHUNK_ROWS
    for row in range(0, len(out), step):
        count = min(step, len(out) - row)
        start = first + row
        scale, zeros = scales(start, count), None
        if not arguments.symmetric:
            begin, end = start * bits // 32, -(-(start + count) * bits // 32)
            shape = torch.Size((count, scale.shape[1]))
            zeros = unpack_from_int32(zero_points(begin, end - begin), bits, shape, packed_dim=0)
        codes = _codes(packed(start, count), bits, columns)
        out[row : row + count].copy_(dequantize(codes, scale, zeros, arguments))


def _codes(words: Tensor, bits: int, columns: int) -> Tensor:
    """Return the signed codes int8 [R, C] of packed words int32 [R, C * bits / 32]."""
    if bits == 8:
        # The bytes as they lie there; unpack_from_int32 gathers them word by word, 40 times slower.
        return words.view(torch.int8) ^ -128
    codes: Tensor = unpack_from_int32(words, bits, torch.Size((len(words), columns)))
    return codes
