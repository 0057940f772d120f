"""A format's types of matrices: floats, or integers with a scale for each block or row. Standard
library only: plans (in the core) and converters (in toolchains) share it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from phibuild.worker.grids import Grid

ROW = -1
"""The group size that stands for one scale for each row."""


@dataclass(frozen=True)
class Encoding:
    """The type `kind`, in the format's words, of a tensor's numbers, which have `bits` each.
    Integers have a scale of `scale_size` bytes for each `group_size` weights of a row, or for each
    row; floats have none: 0."""

    kind: str
    bits: int
    group_size: int = ROW
    scale_size: int = 0

    @property
    def is_integer(self) -> bool:
        return self.scale_size > 0

    def is_on(self, grid: Grid) -> bool:
        """Return whether its numbers are those of a grid."""
        return (self.bits, self.group_size) == (grid.bits, grid.group_size)

    def blocks(self, width: int) -> int:
        """Return how many scales a row of `width` weights has."""
        return 1 if self.group_size == ROW else width // self.group_size

    def data_bytes(self, shape: tuple[int, ...]) -> int:
        """Return the bytes of a tensor's numbers."""
        return self.bits * math.prod(shape) // 8

    def scale_bytes(self, shape: tuple[int, ...]) -> int:
        """Return the bytes of its scales."""
        return self.scale_size * shape[0] * self.blocks(shape[1]) if self.is_integer else 0

    def nbytes(self, shape: tuple[int, ...]) -> int:
        return self.data_bytes(shape) + self.scale_bytes(shape)


def type_name(how: Encoding) -> str:
    """Return what recipes call a type of integers: INT4b32, INT8."""
    return "INT8" if how.group_size == ROW else f"INT{how.bits}b{how.group_size}"


def parse_type(name: str) -> tuple[int, int]:
    """Return bits and group size of a type's name."""
    bits, blocks, size = name.removeprefix("INT").partition("b")
    return int(bits), int(size) if blocks else ROW
