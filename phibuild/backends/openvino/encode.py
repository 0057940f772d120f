"""How an IR stores a tensor's rows: floats, or integers with a scale and a zero point.

The integers are those of nncf 3.4 without data (`compress_weights` in the modes int8_asym,
int8_sym, int4_asym and int4_sym), bit for bit: the same operations on float32, in the same order,
as the models that nncf compiles for OpenVINO (nncf/openvino/optimized_functions/models.py). Each
row is worked out by itself, so the bytes do not depend on how rows are grouped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from phibuild.worker.protocol import WorkerError

Floats = NDArray[np.float32]
Bytes = NDArray[Any]

READ_AS = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32}
"""The item that NumPy reads each type of a checkpoint as; it has no bfloat16."""
ROW = -1
"""The group size that stands for one scale for each row."""

_FP16_MAX = float(np.finfo(np.float16).max)
# Numbers from here on round to infinity in fp16: half a step above its largest.
_FP16_END = 65520.0
_EPSILON = np.finfo(np.float32).eps

# Bits of bfloat16 (8 of exponent, 7 of mantissa) and of fp16 (5 and 10).
_SIGN, _MAGNITUDE = np.uint16(0x8000), np.uint16(0x7FFF)
_BIAS = np.uint16((127 - 15) << 7)
_SMALLEST_NORMAL = np.uint16((127 - 14) << 7)  # of fp16, as bfloat16: 2**-14
_EXTRA_MANTISSA = np.uint16(10 - 7)
_BF16_INFINITY = np.uint16(0xFF << 7)


@dataclass(frozen=True)
class Rows:
    """Consecutive rows [rows, width] of the checkpoint's tensor `name`, in its own type `dtype`;
    `values` are items of `READ_AS`."""

    name: str
    dtype: str
    values: NDArray[Any]

    @cached_property
    def wide(self) -> Floats:
        """The rows as float32, made once."""
        return to_float32(self.dtype, self.values)


@dataclass(frozen=True)
class Part:
    """One constant of a stored matrix: `suffix` follows the tensor's name, `kind` is OpenVINO's
    element type (u4, f16, ...)."""

    suffix: str
    kind: str
    shape: tuple[int, ...]


class Encoding(Protocol):
    """How a matrix is stored."""

    def parts(self, shape: tuple[int, int]) -> tuple[Part, ...]:
        """Return the constants of a matrix [out, in], the first its weights."""

    def encode(self, rows: Rows) -> tuple[Bytes, ...]:
        """Return the bytes of each part for these rows. Raises WorkerError if a weight cannot be
        stored so."""


@dataclass(frozen=True)
class Float:
    """f16 or f32."""

    kind: str

    def parts(self, shape: tuple[int, int]) -> tuple[Part, ...]:
        return (Part("", self.kind, shape),)

    def encode(self, rows: Rows) -> tuple[Bytes, ...]:
        return (rows.wide if self.kind == "f32" else to_float16(rows),)


@dataclass(frozen=True)
class Integer:
    """`bits` (4 or 8) a weight with a scale (f16) for each `group_size` weights of a row, and if
    `asymmetric` a zero point."""

    bits: int
    asymmetric: bool
    group_size: int = ROW

    @property
    def kind(self) -> str:
        return f"{'u' if self.asymmetric else 'i'}{self.bits}"

    def parts(self, shape: tuple[int, int]) -> tuple[Part, ...]:
        rows, width = shape
        weights: tuple[int, ...] = (rows, width)
        groups: tuple[int, ...] = (rows, 1)
        if self.group_size != ROW:
            weights = (rows, width // self.group_size, self.group_size)
            groups = (rows, width // self.group_size, 1)
        scale = Part("/scale", "f16", groups)
        if not self.asymmetric:
            return Part("", self.kind, weights), scale
        return Part("", self.kind, weights), Part("/zero_point", self.kind, groups), scale

    def encode(self, rows: Rows) -> tuple[Bytes, ...]:
        weights = rows.wide.reshape(-1)
        size = rows.values.shape[1] if self.group_size == ROW else self.group_size
        starts = np.arange(0, weights.size, size)
        low = np.minimum.reduceat(weights, starts)
        high = np.maximum.reduceat(weights, starts)
        scale = self._scale(low, high)
        with np.errstate(over="ignore"):
            stored_scale = scale.astype(np.float16)
        if not np.isfinite(stored_scale).all():
            raise WorkerError(
                f"tensor {rows.name} holds weights that are not finite, or too large for a scale "
                "in fp16; build fp32"
            )
        codes = weights.reshape(-1, size) / scale[:, None]
        if not self.asymmetric:
            return self._pack(codes, -(1 << (self.bits - 1))), stored_scale
        zero_point = np.clip(-np.rint(low / scale), 0.0, (1 << self.bits) - 1)
        codes += zero_point[:, None]
        return self._pack(codes, 0), self._pack(zero_point, 0), stored_scale

    def _scale(self, low: Floats, high: Floats) -> Floats:
        """Return the scales of groups of these extremes. Symmetric ones are negative where the
        largest weight is a positive one, so that it has the level that only one side has. `low`
        and `high` are widened to include zero if asymmetric."""
        if self.asymmetric:
            np.minimum(low, 0.0, out=low)
            np.maximum(high, 0.0, out=high)
            scale = (high - low) / np.float32((1 << self.bits) - 1)
        else:
            below = np.abs(low)
            scale = np.where(below >= high, below, -high) / np.float32(1 << (self.bits - 1))
        scale[np.abs(scale) < _EPSILON] = _EPSILON
        return scale

    def _pack(self, codes: Floats, lowest: int) -> Bytes:
        """Round `codes` in place to the levels from `lowest` on; return them, two in a byte if
        they have 4 bits, the first in the lower half."""
        np.rint(codes, out=codes)
        np.clip(codes, lowest, lowest + (1 << self.bits) - 1, out=codes)
        levels = codes.astype(np.int8).view(np.uint8) if lowest < 0 else codes.astype(np.uint8)
        levels = levels.reshape(-1)
        if self.bits == 8:
            return levels
        if levels.size % 2:
            levels = np.append(levels, np.uint8(0))
        levels &= np.uint8(0x0F)
        pairs = levels.view("<u2")
        packed: NDArray[np.uint8] = ((pairs >> np.uint16(4)) | pairs).astype(np.uint8)
        return packed


def encoding(name: str, options: Mapping[str, Any]) -> Encoding:
    """Return how the matrix `name` is stored in a variant with these options (`mode`, and for int4
    `group_size`).

    int4 leaves 8 bits with zero points to the embedding and the output layer: nncf's backup mode,
    as optimum-intel sets it.
    """
    mode = options["mode"]
    if mode in ("fp16", "fp32"):
        return Float(f"f{mode[2:]}")
    if mode.startswith("int4") and not name.startswith("model.layers."):
        return Integer(8, asymmetric=True)
    return Integer(int(mode[3]), mode.endswith("_asym"), options.get("group_size", ROW))


def to_float32(dtype: str, values: NDArray[Any]) -> Floats:
    """Return items of `READ_AS` as float32."""
    if dtype == "BF16":  # the upper half of a float32
        wide = values.astype(np.uint32)
        wide <<= np.uint32(16)
        return wide.view(np.float32)
    return values.astype(np.float32, copy=False)


def to_float16(rows: Rows) -> NDArray[np.float16]:
    """Return the rows in fp16. Raises WorkerError if a value does not fit into it."""
    if rows.dtype == "F16":
        return rows.values
    wide = rows.wide
    # Infinity and NaN were allowed by the user: phibuild looks for them before it builds.
    if (not (wide.max() < _FP16_END and wide.min() > -_FP16_END)  # nan too
            and (np.abs(wide[np.isfinite(wide)]) >= _FP16_END).any()):  # fmt: skip
        raise WorkerError(
            f"tensor {rows.name} holds values outside of fp16 (largest "
            f"{float(np.abs(wide).max()):.6g}, limit {_FP16_MAX:.0f}); build fp32, int8 or int4"
        )
    if rows.dtype == "F32":
        return wide.astype(np.float16)
    # NumPy rounds each number in software. A bfloat16 has fewer bits of mantissa than an fp16, so
    # those in its normal range need only another exponent; the few below are left to NumPy.
    values = rows.values.reshape(-1)
    narrow = values & _MAGNITUDE
    small = np.flatnonzero((narrow < _SMALLEST_NORMAL) | (narrow >= _BF16_INFINITY))
    narrow -= _BIAS
    narrow <<= _EXTRA_MANTISSA
    narrow |= values & _SIGN
    floats: NDArray[np.float16] = narrow.view(np.float16)
    floats[small] = wide.reshape(-1)[small].astype(np.float16)
    return floats.reshape(wide.shape)
