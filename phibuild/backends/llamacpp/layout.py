"""Which GGUF type each tensor of a Phi model gets, and what it weighs. Standard library only.

The rules are those of llama.cpp's own quantizer (src/llama-quant.cpp: `llama_tensor_get_type_impl`
and `tensor_type_fallback`) as they come out for the `phi3` architecture; the slow tests compare
every tensor with what that tool writes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from phibuild.worker.architecture import Architecture
from phibuild.worker.grids import Grid
from phibuild.worker.requests import Options


@dataclass(frozen=True)
class BlockType:
    """A ggml storage type: its number in the file, weights per block, bytes per block (ggml.h)."""

    id: int
    weights: int
    nbytes: int


BLOCK_TYPES = {
    "F32": BlockType(0, 1, 4),
    "F16": BlockType(1, 1, 2),
    "Q4_0": BlockType(2, 32, 18),
    "Q4_1": BlockType(3, 32, 20),
    "Q5_0": BlockType(6, 32, 22),
    "Q5_1": BlockType(7, 32, 24),
    "Q8_0": BlockType(8, 32, 34),
    "Q4_K": BlockType(12, 256, 144),
    "Q5_K": BlockType(13, 256, 176),
    "Q6_K": BlockType(14, 256, 210),
    "IQ4_NL": BlockType(20, 32, 18),
    "IQ4_XS": BlockType(23, 256, 136),
}
GRIDS = {
    "Q4_0": Grid(4, 32, "middle", "F16"),
    "Q4_K": Grid(4, 32, "bias", "F16", shared=8),
    "Q5_K": Grid(5, 32, "bias", "F16", shared=8),
}
"""Types of tensors that calibrated weights are stored in, and what numbers they have."""
K_QUANTS = ("Q4_K", "Q5_K", "Q6_K")
"""Types whose searches can be compiled (kquants.py)."""

ROPE_FACTORS = "rope_factors_"
"""How the names of tensors begin that are configuration, not weights."""
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_output": "self_attn.o_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.gate_up_proj",
}
"""Tensors of a layer: name in GGUF -> in the checkpoint."""
_ROLES = {part: role for role, part in _LAYER.items()}
_SMALLER_BLOCKS = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0", "IQ4_XS": "IQ4_NL"}


@dataclass(frozen=True)
class FileType:
    """A type of GGUF file as users name it: its number (`llama_ftype`) and its base type."""

    id: int
    base: str

    @property
    def quantized(self) -> bool:
        return self.base not in ("F32", "F16")


FILE_TYPES = {
    "F32": FileType(0, "F32"),
    "F16": FileType(1, "F16"),
    "Q4_0": FileType(2, "Q4_0"),
    "Q8_0": FileType(7, "Q8_0"),
    "Q4_K_M": FileType(15, "Q4_K"),
    "Q5_K_M": FileType(17, "Q5_K"),
    "IQ4_XS": FileType(30, "IQ4_XS"),
}


@dataclass(frozen=True)
class Tensor:
    """One tensor of the file: `source` is its name in the checkpoint, None for rope factors,
    which come from config.json; `shape` is rows first, as in the checkpoint."""

    name: str
    source: str | None
    shape: tuple[int, ...]
    kind: str

    @property
    def parameters(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.parameters // self.shape[-1] * row_bytes(self.kind, self.shape[-1])


def row_bytes(kind: str, columns: int) -> int:
    """Return the bytes of one row of `columns` weights. Rows are whole blocks."""
    block = BLOCK_TYPES[kind]
    return columns // block.weights * block.nbytes


def stored_name(source: str) -> str:
    """Return the name in GGUF of a layer's tensor, by its name in the checkpoint."""
    _, _, layer, part = source.removesuffix(".weight").split(".", 3)
    return f"blk.{layer}.{_ROLES[part]}.weight"


def variant_tensors(arch: Architecture, options: Options) -> list[Tensor]:
    """Return all tensors of the file of a variant with these options."""
    types = options.get("tensor_types", {})
    return tensors(arch, options["type"], imatrix="imatrix" in options, types=types)


def tensors(
    arch: Architecture,
    file_type: str,
    *,
    imatrix: bool = False,
    types: Mapping[str, str] = MappingProxyType({}),
) -> list[Tensor]:
    """Return all tensors of a file of this type, made with or without an importance matrix, in
    llama-quantize's order, layer by layer; `types` are those of matrices that have their own, by
    their names in the checkpoint."""
    return list(_File(arch, file_type, imatrix, types).tensors())


@dataclass(frozen=True)
class _File:
    """A file of the type `type`, made with or without an importance matrix, and the types of
    matrices that have their own."""

    arch: Architecture
    type: str
    imatrix: bool
    types: Mapping[str, str]

    def tensors(self) -> Iterator[Tensor]:
        arch = self.arch
        if not arch.tied:
            yield self._matrix("output", "lm_head")
        yield self._norm("output_norm", "model.norm")
        for name, factors in (("long", arch.rope.long), ("short", arch.rope.short)):
            if factors:
                yield Tensor(f"{ROPE_FACTORS}{name}.weight", None, (len(factors),), "F32")
        yield self._matrix("token_embd", "model.embed_tokens")
        for layer in range(arch.layers):
            for role, part in _LAYER.items():
                name, source = f"blk.{layer}.{role}", f"model.layers.{layer}.{part}"
                if role.endswith("_norm"):
                    yield self._norm(name, source)
                else:
                    yield self._matrix(name, source, layer)

    def _norm(self, name: str, source: str) -> Tensor:
        # Vectors stay F32 in every file type.
        return Tensor(f"{name}.weight", f"{source}.weight", (self.arch.hidden_size,), "F32")

    def _matrix(self, name: str, source: str, layer: int = 0) -> Tensor:
        arch, role = self.arch, name.rpartition(".")[2]
        shape = {
            "output": (arch.vocab_size, arch.hidden_size),
            "token_embd": (arch.vocab_size, arch.hidden_size),
            "attn_qkv": (arch.qkv_width, arch.hidden_size),
            "attn_output": (arch.hidden_size, arch.heads * arch.head_dim),
            "ffn_up": (2 * arch.intermediate_size, arch.hidden_size),
            "ffn_down": (arch.hidden_size, arch.intermediate_size),
        }[role]
        kind = self.types.get(f"{source}.weight") or self._kind(role, layer, shape[1])
        return Tensor(f"{name}.weight", f"{source}.weight", shape, kind)

    def _kind(self, role: str, layer: int, columns: int) -> str:
        """Return the type of one matrix: the file's base type, more bits where it pays, and a type
        of smaller blocks where the rows are no whole blocks."""
        kind = FILE_TYPES[self.type].base
        if not FILE_TYPES[self.type].quantized:
            return kind
        kind = self._wider(kind, role, layer, columns)
        if columns % BLOCK_TYPES[kind].weights:
            kind = _SMALLER_BLOCKS.get(kind, kind)
            if columns % BLOCK_TYPES[kind].weights:
                kind = "F16"
        return kind

    def _wider(self, kind: str, role: str, layer: int, columns: int) -> str:
        arch = self.arch
        first = role == "ffn_down" and layer < arch.layers // 8
        if role == "output" or (role == "token_embd" and arch.tied):
            if columns % BLOCK_TYPES[kind].weights:
                return "Q8_0"
            return kind if kind == "Q8_0" else "Q6_K"
        if self.type in ("Q4_K_M", "Q5_K_M"):
            wide = role in ("attn_qkv", "ffn_down") and _more_bits(layer, arch.layers)
            return "Q6_K" if wide else kind
        if self.type == "IQ4_XS":
            grouped = role == "attn_qkv" and arch.heads // arch.kv_heads >= 4
            return "Q5_K" if grouped or (first and not self.imatrix) else kind
        if self.type == "Q4_0" and self.imatrix and first:
            return "Q4_1"
        return kind


def _more_bits(layer: int, layers: int) -> bool:
    """llama.cpp's `use_more_bits`: the first and last eighth, and every third in between."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2
