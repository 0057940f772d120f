"""How a variant stores each tensor of a checkpoint. Standard library only: spec and worker use it.

Quantized layers are in the `pack-quantized` format of compressed-tensors: for `X.weight` [rows,
cols] with groups of g columns and b bits a weight

    X.weight_packed      I32 [rows, cols * b / 32]    b-bit codes, the first in the lowest bits
    X.weight_scale       the model's dtype [rows, cols / g]
    X.weight_shape       I64 [2]                      rows, cols
    X.weight_zero_point  I32 [rows * b / 32 (rounded up), cols / g], asymmetric only, packed by rows

Layers of other bits or groups lie among them in the same format, and unquantized ones. Where
servers round activations too, layers are in the formats `int-quantized` or `float-quantized`:

    X.weight             I8 or F8_E4M3 [rows, cols]
    X.weight_scale       the model's dtype [rows, 1]
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from phibuild.worker.architecture import Architecture
from phibuild.worker.requests import Options
from phibuild.worker.safetensors import FLOAT_DTYPES, ITEM_BYTES

MAX_SHARD_BYTES = 5_000_000_000  # "5GB", the usual size of a shard on the Hub

Entry = tuple[str, str, tuple[int, ...]]
"""Name, safetensors dtype and shape of one stored tensor."""


@dataclass(frozen=True)
class GroupQuantization:
    """`bits` a weight, `group_size` columns a scale; codes signed around zero if `symmetric`."""

    bits: int
    group_size: int
    symmetric: bool

    @classmethod
    def from_kind(cls, kind: str, group_size: int) -> GroupQuantization | None:
        """Return what a symmetric type means among groups of `group_size`: w4, w8, or w4g32 with
        a group of its own; None for one that is not quantized (BF16)."""
        if not kind.startswith("w"):
            return None
        bits, _, own = kind[1:].partition("g")
        return cls(int(bits), int(own or group_size), symmetric=True)

    @property
    def kind(self) -> str:
        return quantized_kind(self.bits, self.symmetric)

    def entries(self, name: str, shape: tuple[int, int], dtype: str) -> list[Entry]:
        """Return what a weight [rows, cols] is stored as, with scales of `dtype`."""
        rows, cols = shape
        bits, groups = self.bits, cols // self.group_size
        entries: list[Entry] = [
            (f"{name}_packed", "I32", (rows, cols * bits // 32)),
            (f"{name}_scale", dtype, (rows, groups)),
            (f"{name}_shape", "I64", (2,)),
        ]
        if not self.symmetric:
            entries.append((f"{name}_zero_point", "I32", (math.ceil(rows * bits / 32), groups)))
        return entries


@dataclass(frozen=True)
class RowQuantization:
    """8 bits a weight of the type `int` or `float` (FP8: E4M3) and a scale for each row; servers
    round activations to the same type as they come, with a scale for each token."""

    type: Literal["int", "float"]

    @property
    def kind(self) -> str:
        return {"int": "w8a8", "float": "fp8"}[self.type]

    @property
    def stored(self) -> str:
        return {"int": "I8", "float": "F8_E4M3"}[self.type]

    def entries(self, name: str, shape: tuple[int, int], dtype: str) -> list[Entry]:
        """Return what a weight [rows, cols] is stored as, with scales of `dtype`."""
        return [(name, self.stored, shape), (f"{name}_scale", dtype, (shape[0], 1))]


Quantization: TypeAlias = GroupQuantization | RowQuantization
ROWS = {"W8A8": RowQuantization("int"), "FP8_DYNAMIC": RowQuantization("float")}
"""llm-compressor's names of them."""


@dataclass(frozen=True)
class Scheme:
    """How a variant stores weights: linear layers by `quantization`, the rest as `dtype` (in
    config.json's words); all as `dtype` where `quantization` is None. `own` has the layers, by the
    names of their weights, that are stored another way."""

    dtype: str
    quantization: Quantization | None
    own: Mapping[str, GroupQuantization | None] = field(default_factory=dict)

    @classmethod
    def from_options(cls, options: Options) -> Scheme:
        """Return the scheme of a variant's complete options."""
        if "bits" not in options:
            return cls(options["dtype"], None)
        if "scheme" in options:
            return cls(options["dtype"], ROWS[options["scheme"]])
        size = options["group_size"]
        types = options.get("tensor_types") or {}
        return cls(
            options["dtype"],
            GroupQuantization(options["bits"], size, options["symmetric"]),
            {name: GroupQuantization.from_kind(kind, size) for name, kind in types.items()},
        )

    def quantization_of(self, name: str) -> Quantization | None:
        """Return how the tensor `name` is quantized: embeddings, lm_head and norms never are."""
        if not is_linear(name):
            return None
        return self.own.get(name, self.quantization)

    def entries(self, name: str, shape: tuple[int, ...]) -> list[Entry]:
        """Return what one tensor of the checkpoint is stored as."""
        quantization = self.quantization_of(name)
        dtype = FLOAT_DTYPES[self.dtype]
        if quantization is None:
            return [(name, dtype, shape)]
        rows, cols = shape
        return quantization.entries(name, (rows, cols), dtype)

    def kind(self, name: str) -> str:
        """Return the stored type of one tensor of the checkpoint: F16, w4, w4-asym, fp8, ..."""
        quantization = self.quantization_of(name)
        return FLOAT_DTYPES[self.dtype] if quantization is None else quantization.kind


def is_linear(name: str) -> bool:
    """Return whether a tensor is the weight of a decoder layer's linear layer."""
    return name.endswith("_proj.weight")


def quantized_kind(bits: int, symmetric: bool) -> str:
    return f"w{bits}" if symmetric else f"w{bits}-asym"


def entry_bytes(entry: Entry) -> int:
    """Return the bytes of a stored tensor's data."""
    _, dtype, shape = entry
    return math.prod(shape) * ITEM_BYTES[dtype]


def file_entries(arch: Architecture, scheme: Scheme) -> list[Entry]:
    """Return all tensors of an artifact in the order of the file.

    Wide types come first, as safetensors' own writer puts them: every tensor then begins at a
    multiple of its item size, which loaders that map the file need.
    """
    entries = [entry for name, shape in arch.tensors() for entry in scheme.entries(name, shape)]
    return sorted(entries, key=lambda entry: -ITEM_BYTES[entry[1]])
