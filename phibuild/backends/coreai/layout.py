"""How a Core AI model stores each tensor of a checkpoint. Standard library only: the plan (in the
core) and the converter (in the toolchain) share it.

The types are those of Apple's own recipe for Phi (coreai-models, models/phi): what a layer
multiplies by has 4 bits in blocks of 32 with a scale in fp16, or 8 bits with a scale for each row;
all else, the embedding too, is fp16, in which the model is computed. fp32 is fp32 throughout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from phibuild.worker.grids import Grid
from phibuild.worker.requests import Options

ROW = -1
"""The group size that stands for one scale for each row."""
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_BITS = {"f32": 32, "f16": 16, "si8": 8, "si4": 4}


@dataclass(frozen=True)
class Encoding:
    """Core AI's type `kind` of a tensor's numbers. Integers have a scale (fp16) for each
    `group_size` weights of a row, or for each row."""

    kind: str
    group_size: int = ROW

    @property
    def bits(self) -> int:
        return _BITS[self.kind]

    @property
    def is_integer(self) -> bool:
        """Whether there are scales."""
        return self.kind.startswith("si")

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
        return 2 * shape[0] * self.blocks(shape[1]) if self.is_integer else 0


def float_kind(options: Options) -> str:
    """Return the type that a variant is computed in."""
    return "f32" if options["mode"] == "fp32" else "f16"


def encoding(name: str, shape: tuple[int, ...], options: Options) -> Encoding:
    """Return how a tensor is stored in a variant with these options."""
    plain = Encoding(float_kind(options))
    if len(shape) == 1 or name == EMBEDDING:
        return plain
    own = options.get("tensor_types", {}).get(name)
    if own is not None:
        return from_type(own)
    match options["mode"]:
        case "int4":
            return Encoding("si4", options["group_size"])
        case "int8":
            return Encoding("si8")
    return plain


def type_name(how: Encoding) -> str:
    """Return what recipes call a type: INT4b32, INT8."""
    return f"INT4b{how.group_size}" if how.kind == "si4" else "INT8"


def from_type(name: str) -> Encoding:
    """Return the type of a name."""
    _, blocks, size = name.partition("b")
    return Encoding("si4", int(size)) if blocks else Encoding("si8")
