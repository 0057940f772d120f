"""How an ExecuTorch program stores each tensor of a checkpoint, and what its graph is made for.

Standard library only: the plan (in the core) and the converter (in the toolchain) share it. The
types are those that ExecuTorch's own exporter (extension.llm.export) makes of `qmode: 8da4w` (int4)
and `8da8w` (int8) with `embedding_quantize: 8,0`: what XNNPACK multiplies by has 4 bits in blocks
or 8 with a scale for each row, the embedding, which is looked up and not multiplied by, 8 bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from phibuild.worker.architecture import Architecture
from phibuild.worker.grids import Grid
from phibuild.worker.requests import Options

PREFILL_TOKENS = 128
"""The most tokens of one call, the exporter's default: a runner feeds a prompt in such chunks."""
ROW = -1
"""The group size that stands for one scale for each row."""
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_BITS = {"FLOAT32": 32, "FLOAT16": 16, "INT8": 8, "INT4": 4}
_PLAIN = {"fp32": "FLOAT32", "fp16": "FLOAT16"}


@dataclass(frozen=True)
class Encoding:
    """The type `kind` of a tensor's numbers. INT8 has a scale (fp32) for each row, INT4 one (bf16)
    for each `group_size` weights of a row."""

    kind: str
    group_size: int = ROW

    @property
    def bits(self) -> int:
        return _BITS[self.kind]

    @property
    def is_integer(self) -> bool:
        """Whether there are scales."""
        return self.kind.startswith("INT")

    def is_on(self, grid: Grid) -> bool:
        """Return whether its numbers are those of a grid."""
        return (self.bits, self.group_size) == (grid.bits, grid.group_size)

    def data_bytes(self, shape: tuple[int, ...]) -> int:
        """Return the bytes of a tensor's numbers."""
        return self.bits * math.prod(shape) // 8

    def scale_bytes(self, shape: tuple[int, ...]) -> int:
        """Return the bytes of its scales."""
        if self.kind == "INT8":
            return 4 * shape[0]
        return 2 * math.prod(shape) // self.group_size if self.kind == "INT4" else 0


def head_name(arch: Architecture) -> str:
    """Return the tensor that gives the logits."""
    return EMBEDDING if arch.tied else HEAD


def factors(arch: Architecture) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield name and shape of the matrices that XNNPACK multiplies by: all but the embedding, which
    is one where it is the output layer, too."""
    for name, shape in arch.tensors():
        if len(shape) == 2 and (name != EMBEDDING or arch.tied):
            yield name, shape


def factor_encoding(name: str, options: Options) -> Encoding:
    """Return how a matrix that XNNPACK multiplies by is stored in a variant with these options."""
    own = options.get("tensor_types", {}).get(name)
    if own is not None:
        return from_type(own)
    if options["mode"] == "int4":
        return Encoding("INT4", options["group_size"])
    return embedding_encoding(options)


def embedding_encoding(options: Options) -> Encoding:
    """Return how the embedding is stored."""
    return Encoding(_PLAIN.get(options["mode"], "INT8"))


def type_name(how: Encoding) -> str:
    """Return what recipes call a type: INT4b32, INT8."""
    return f"INT4b{how.group_size}" if how.kind == "INT4" else "INT8"


def from_type(name: str) -> Encoding:
    """Return the type of a name."""
    _, blocks, size = name.partition("b")
    return Encoding("INT4", int(size)) if blocks else Encoding("INT8")
