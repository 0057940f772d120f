"""Rotary positions in the graph: the tables of cosines and sines, and their use on heads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from phibuild.backends.openvino.nodes import (
    LAST,
    Output,
    f32,
    i32,
    i64,
    named,
    opset,
    slice_,
)
from phibuild.worker.architecture import Architecture
from phibuild.worker.rotary import theta_powers

_PREFIX = "__module.model.rotary_emb/"


@dataclass(frozen=True)
class RotaryTables:
    """Cosines and sines of the positions, [batch, 1, tokens, rotary_dim]."""

    cos: Output
    sin: Output


def rotary_tables(position_ids: Output, arch: Architecture) -> RotaryTables:
    """Return the tables for `position_ids` [batch, tokens].

    Longrope chooses its factors while it runs, as Transformers does: the long ones as soon as the
    largest position of the call is beyond `original_max_positions`.
    """
    positions = opset.convert(opset.unsqueeze(position_ids, i64(1)), "f32")
    angles = opset.matmul(_inverse_frequencies(position_ids, arch), positions, False, False)
    angles = opset.transpose(angles, i32([0, 2, 1]))
    angles = opset.concat([angles, angles], -1)
    cos, sin = opset.cos(angles), opset.sin(angles)
    if arch.attention_factor != 1.0:
        factor = np.full((1, 1, 1), arch.attention_factor)
        cos, sin = opset.multiply(cos, f32(factor)), opset.multiply(sin, f32(factor))
    return RotaryTables(
        named(opset.unsqueeze(cos, i64(1)), _PREFIX + "cos"),
        named(opset.unsqueeze(sin, i64(1)), _PREFIX + "sin"),
    )


def _inverse_frequencies(position_ids: Output, arch: Architecture) -> Output:
    """Return 1 / (factor * theta^(2i / rotary_dim)) as [1, rotary_dim / 2, 1]."""
    powers = theta_powers(arch)
    if not arch.rope.is_longrope:
        return f32((np.float32(1.0) / powers).reshape(1, -1, 1))
    largest = opset.add(opset.reduce_max(position_ids, i32([0, 1]), False), i64(1))
    is_long = opset.greater(largest, i64(arch.original_max_positions))
    factors = opset.select(is_long, f32(arch.rope.long), f32(arch.rope.short))
    inverse = opset.power(opset.multiply(factors, f32(powers)), f32([-1.0]))
    return opset.unsqueeze(opset.unsqueeze(inverse, i64(0)), i64(2))


def rotate(heads: Output, tables: RotaryTables, arch: Architecture) -> Output:
    """Return `heads` [batch, heads, tokens, head_dim] with its first `rotary_dim` elements rotated.

    The nodes are those of Transformers' `apply_rotary_pos_emb`: plugins fuse exactly these.
    """
    rotary, half = arch.rotary_dim, arch.rotary_dim // 2
    part = slice_(heads, 0, rotary, 3)
    straight = opset.multiply(part, tables.cos)
    minus_one = opset.convert(i32(-1), "f32")
    turned = opset.concat(
        [opset.multiply(slice_(part, half, LAST, 3), minus_one), slice_(part, 0, half, 3)], -1
    )
    rotated = opset.add(straight, opset.multiply(turned, tables.sin))
    if rotary == arch.head_dim:
        return rotated
    return opset.concat([rotated, slice_(heads, rotary, LAST, 3)], -1)
