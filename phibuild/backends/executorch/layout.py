"""How an ExecuTorch program stores each tensor of a checkpoint, and what its graph is made for.

Standard library only: the plan (in the core) and the converter (in the toolchain) share it. The
types are those that ExecuTorch's own exporter (extension.llm.export) makes of `qmode: 8da4w` (int4)
and `8da8w` (int8) with `embedding_quantize: 8,0`: what XNNPACK multiplies by has 4 bits in blocks
or 8 with a scale for each row, the embedding, which is looked up and not multiplied by, 8 bits.
"""

from __future__ import annotations

from collections.abc import Iterator

from phibuild.worker.architecture import Architecture
from phibuild.worker.encodings import ROW, Encoding, parse_type
from phibuild.worker.requests import Options

PREFILL_TOKENS = 128
"""The most tokens of one call, the exporter's default: a runner feeds a prompt in such chunks."""
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_KINDS = {"FLOAT32": (32, 0), "FLOAT16": (16, 0), "INT8": (8, 4), "INT4": (4, 2)}
_PLAIN = {"fp32": "FLOAT32", "fp16": "FLOAT16"}
_INTEGERS = {4: "INT4", 8: "INT8"}


def stored_as(kind: str, group_size: int = ROW) -> Encoding:
    """Return the type `kind`. INT8 has a scale (fp32) for each row, INT4 one (bf16) for each
    `group_size` weights of a row."""
    bits, scale_size = _KINDS[kind]
    return Encoding(kind, bits, group_size, scale_size)


def integers(bits: int, group_size: int) -> Encoding:
    """Return integers of so many bits."""
    return stored_as(_INTEGERS[bits], group_size)


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
        return integers(*parse_type(own))
    if options["mode"] == "int4":
        return integers(4, options["group_size"])
    return embedding_encoding(options)


def embedding_encoding(options: Options) -> Encoding:
    """Return how the embedding is stored."""
    return stored_as(_PLAIN.get(options["mode"], "INT8"))
