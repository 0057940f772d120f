"""Round to nearest into the codes, scales and packing of compressed-tensors.

The formulas are those of compressed-tensors 0.20 (`calculate_qparams`, `quantize`,
`pack_to_int32`) with llm-compressor's min-max observer, in the same dtype and order of operations,
so that every bit agrees: scales are rounded to the model's dtype before weights are divided by
them, and the quotient is rounded to it too. They are written out here because that package imports
Transformers, which takes seconds and hundreds of megabytes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from phibuild.backends.pytorch.layout import GroupQuantization
from phibuild.worker.floats import pack_nibbles


def quantize(weight: Tensor, how: GroupQuantization) -> tuple[Tensor, Tensor, Tensor | None]:
    """Quantize rows [R, C] of a linear layer; any number of whole rows gives the same codes.

    Returns codes uint8 [R, C], from 0 (the lowest signed code is stored as 0); scales [R, C/g] in
    the dtype of `weight`; zero points uint8 [R, C/g] in the same offset, or None if symmetric.
    """
    low, high = -(1 << (how.bits - 1)), (1 << (how.bits - 1)) - 1
    groups = weight.unflatten(-1, (-1, how.group_size))
    if how.symmetric:
        scale = _largest_magnitude(groups) / ((high - low) / 2)
    else:
        # Zero must have a code. Two reductions are faster than torch.aminmax.
        smallest = torch.amin(groups, dim=-1).clamp_(max=0)
        largest = torch.amax(groups, dim=-1).clamp_(min=0)
        scale = (largest - smallest) / (high - low)
    empty = scale == 0  # a group of zeros, or of numbers so small that the scale underflows
    scale = torch.where(empty, torch.finfo(scale.dtype).eps, scale)
    codes = groups / scale.unsqueeze(-1)
    zero_point = None
    if not how.symmetric:
        # The original divides by the scale 0 here and casts the NaN to the integer 0.
        zero_point = torch.where(empty, 0, low - smallest / scale).clamp_(low, high).round_()
        codes += zero_point.unsqueeze(-1)
    codes = _unsigned(codes.clamp_(low, high).round_(), low).flatten(-2)
    return codes, scale, None if zero_point is None else _unsigned(zero_point, low)


def quantize_rows(weight: Tensor, type: str) -> tuple[Tensor, Tensor]:
    """Quantize rows [R, C] of a linear layer to 8 bits with a scale for each: codes int8 or
    float8_e4m3fn [R, C], and scales [R, 1] in the dtype of `weight`."""
    if type == "int":
        low, high, kind = -128.0, 127.0, torch.int8
    else:
        kind = torch.float8_e4m3fn
        low, high = torch.finfo(kind).min, torch.finfo(kind).max
    scale = _largest_magnitude(weight)[:, None] / ((high - low) / 2)
    scale = torch.where(scale == 0, torch.finfo(scale.dtype).eps, scale)
    codes = (weight / scale).clamp_(low, high)
    return (codes.round_() if type == "int" else codes).to(kind), scale


def _largest_magnitude(groups: Tensor) -> Tensor:
    """Return the largest absolute value over the last axis; finite numbers only."""
    # Without their signs floats are ordered as their bits are, and integers are reduced ten times
    # as fast.
    bits = torch.int32 if groups.element_size() == 4 else torch.int16
    return groups.abs().view(bits).amax(dim=-1).view(groups.dtype)


def _unsigned(codes: Tensor, low: int) -> Tensor:
    # bfloat16 holds the integers of -128..255 exactly, so the offset may be taken in any dtype.
    # Floats become bytes slowly, by way of int16 not.
    return codes.sub_(low).to(torch.int16).to(torch.uint8)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack codes uint8 [R, C] of 4 or 8 bits along their rows: bytes uint8 [R, C * bits / 8].

    Little-endian int32 words with the first code in the lowest bits are these bytes in order.
    """
    if bits == 8:
        return codes
    return torch.from_numpy(pack_nibbles(codes.numpy()))


def pack_rows(codes: Tensor, bits: int) -> Tensor:
    """Pack codes uint8 [R, G] down the columns: int32 words as bytes uint8 [W, G * 4], W = R *
    bits / 32 rounded up; rows that the last word lacks hold zeros."""
    per_word = 32 // bits
    rows, columns = codes.shape
    padded = torch.nn.functional.pad(codes, (0, 0, 0, -rows % per_word))
    words = padded.reshape(-1, per_word, columns).transpose(1, 2)
    return pack(words.reshape(-1, per_word), bits).reshape(-1, columns * 4)
