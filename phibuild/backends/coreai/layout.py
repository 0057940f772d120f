"""How a Core AI model stores each tensor of a checkpoint. Standard library only: the plan (in the
core) and the converter (in the toolchain) share it.

The types are those of Apple's own recipe for Phi (coreai-models, models/phi): what a layer
multiplies by has 4 bits in blocks of 32 with a scale in fp16, or 8 bits with a scale for each row;
all else, the embedding too, is fp16, in which the model is computed. fp32 is fp32 throughout.
"""

from __future__ import annotations

from phibuild.worker.encodings import ROW, Encoding, parse_type
from phibuild.worker.requests import Options

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
NUMBERS = {"FLOAT32": "f32", "FLOAT16": "f16", "INT8": "si8", "INT4": "si4"}
"""What programs call the types."""
_KINDS = {"FLOAT32": (32, 0), "FLOAT16": (16, 0), "INT8": (8, 2), "INT4": (4, 2)}
_INTEGERS = {4: "INT4", 8: "INT8"}


def stored_as(kind: str, group_size: int = ROW) -> Encoding:
    """Return the type `kind`. Integers have a scale (fp16) for each `group_size` weights of a
    row, or for each row."""
    bits, scale_size = _KINDS[kind]
    return Encoding(kind, bits, group_size, scale_size)


def integers(bits: int, group_size: int) -> Encoding:
    """Return Core AI's integers of so many bits."""
    return stored_as(_INTEGERS[bits], group_size)


def float_kind(options: Options) -> str:
    """Return the type that a variant is computed in."""
    return "FLOAT32" if options["mode"] == "fp32" else "FLOAT16"


def encoding(name: str, shape: tuple[int, ...], options: Options) -> Encoding:
    """Return how a tensor is stored in a variant with these options."""
    own = options.get("tensor_types", {}).get(name)
    if own is not None:
        return integers(*parse_type(own))
    if len(shape) == 2 and name != EMBEDDING:
        if options["mode"] == "int4":
            return integers(4, options["group_size"])
        if options["mode"] == "int8":
            return integers(8, ROW)
    return stored_as(float_kind(options))
