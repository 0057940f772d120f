"""How a LiteRT model stores each tensor of a checkpoint, and what its graph is made for.

Standard library only: the plan (in the core) and the converter (in the toolchain) share it. The
types are those of ai-edge-quantizer's recipes dynamic_wi8_afp32 (int8, a scale for each row) and
dynamic_wi4b32_afp32 (int4 in blocks), for the embedding and the output layer too; norms stay fp32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from phibuild.worker.grids import Grid
from phibuild.worker.requests import Options

PREFILL_TOKENS = 128
"""Tokens of a chunk of the prompt: litert-torch's default."""
ROW = -1
"""The group size that stands for one scale for each row."""
_BITS = {"FLOAT32": 32, "FLOAT16": 16, "INT8": 8, "INT4": 4}
_ROW_BYTES = 2 * (4 + 8)
_PLAIN = {"fp32": "FLOAT32", "fp16": "FLOAT16", "int8": "INT8"}


@dataclass(frozen=True)
class Encoding:
    """LiteRT's type `kind` of a tensor's numbers. INT8 has a scale (fp32) for each row, INT4 one
    (fp16) for each `group_size` weights of a row."""

    kind: str
    group_size: int = ROW

    @property
    def bits(self) -> int:
        return _BITS[self.kind]

    def is_on(self, grid: Grid) -> bool:
        """Return whether its numbers are those of a grid."""
        return (self.bits, self.group_size) == (grid.bits, grid.group_size)

    def data_bytes(self, shape: tuple[int, ...]) -> int:
        """Return the bytes of a tensor's numbers."""
        return self.bits * math.prod(shape) // 8

    def scale_bytes(self, shape: tuple[int, ...]) -> int:
        """Return the bytes of its scales; those of rows are in both graphs, with zero points."""
        if self.kind == "INT8":
            return _ROW_BYTES * shape[0]
        return 2 * math.prod(shape) // self.group_size if self.kind == "INT4" else 0


def encoding(name: str, shape: tuple[int, ...], options: Options) -> Encoding:
    """Return how a tensor is stored in a variant with these options."""
    if len(shape) == 1:
        return Encoding("FLOAT32")
    mode = options["mode"]
    own = options.get("tensor_types", {}).get(name)
    if own is not None:
        return from_type(own)
    if mode == "int4":
        return Encoding("INT4", options["group_size"])
    return Encoding(_PLAIN[mode])


def type_name(how: Encoding) -> str:
    """Return what recipes call a type: INT4b32, INT8."""
    return f"INT4b{how.group_size}" if how.kind == "INT4" else "INT8"


def from_type(name: str) -> Encoding:
    """Return the type of a name."""
    _, blocks, size = name.partition("b")
    return Encoding("INT4", int(size)) if blocks else Encoding("INT8")
