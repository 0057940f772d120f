"""How an IR stores each tensor of a checkpoint: constants, by element type and shape.

Standard library only: the plan (in the core) and the converter (in the toolchain) share it. The
choice is that of nncf 3.4 as optimum-intel calls it: norms stay f32, and the embedding and the
output layer of an int4 model get 8 bits with zero points (nncf's backup mode).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from phibuild.worker.grids import Grid
from phibuild.worker.requests import Options

ROW = -1
"""The group size that stands for one scale for each row; Intel calls such models channel-wise."""
_BITS = {"f32": 32, "f16": 16, "u8": 8, "i8": 8, "u4": 4, "i4": 4}


@dataclass(frozen=True)
class Part:
    """One constant of a stored tensor: `suffix` follows the tensor's name, `kind` is OpenVINO's
    element type (u4, f16, ...)."""

    suffix: str
    kind: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return -(-_BITS[self.kind] * math.prod(self.shape) // 8)


@dataclass(frozen=True)
class Encoding:
    """The element type `kind` of a tensor's numbers. Integers have a scale (f16) for each
    `group_size` weights of a row, unsigned ones a zero point of their own type too."""

    kind: str
    group_size: int = ROW

    @property
    def bits(self) -> int:
        return _BITS[self.kind]

    @property
    def quantized(self) -> bool:
        return self.kind[0] != "f"

    @property
    def asymmetric(self) -> bool:
        return self.kind[0] == "u"

    def is_on(self, grid: Grid) -> bool:
        """Return whether its numbers are those of a grid."""
        return (self.bits, self.group_size) == (grid.bits, grid.group_size)

    def parts(self, shape: tuple[int, ...]) -> tuple[Part, ...]:
        """Return the constants of a tensor, the first its numbers; of integers, matrices [out, in],
        the scale is the last."""
        if not self.quantized:
            return (Part("", self.kind, shape),)
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


def encoding(name: str, shape: tuple[int, ...], options: Options) -> Encoding:
    """Return how the tensor `name` is stored in a variant with these options (`mode`, for int4
    `group_size`, and the types of matrices that have their own: u8, or u4g32 with its group)."""
    mode = options["mode"]
    if mode in ("fp16", "fp32"):
        return Encoding(f"f{mode[2:]}")
    if len(shape) == 1:
        return Encoding("f32")
    if mode.startswith("int4") and not name.startswith("model.layers."):
        return Encoding("u8")
    own = options.get("tensor_types", {}).get(name)
    kind, _, group_size = (own or whole_kind(mode)).partition("g")
    if kind[1] != "4":
        return Encoding(kind)
    return Encoding(kind, int(group_size or options.get("group_size", ROW)))


def whole_kind(mode: str) -> str:
    """Return the element type of a mode: u4, i4, u8 or i8."""
    return f"{'u' if mode.endswith('_asym') else 'i'}{mode[3]}"
