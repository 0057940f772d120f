"""How a LiteRT model stores each tensor of a checkpoint, and what its graph is made for.

Standard library only: the plan (in the core) and the converter (in the toolchain) share it. The
types are those of ai-edge-quantizer's recipes dynamic_wi8_afp32 (int8, a scale for each row) and
dynamic_wi4b32_afp32 (int4 in blocks), for the embedding and the output layer too; norms stay fp32.
"""

from __future__ import annotations

from phibuild.worker.encodings import ROW, Encoding, parse_type
from phibuild.worker.requests import Options

PREFILL_TOKENS = 128
"""Tokens of a chunk of the prompt: litert-torch's default."""
# The scales of rows are in both graphs, with zero points.
_KINDS = {"FLOAT32": (32, 0), "FLOAT16": (16, 0), "INT8": (8, 2 * (4 + 8)), "INT4": (4, 2)}
_PLAIN = {"fp32": "FLOAT32", "fp16": "FLOAT16", "int8": "INT8"}
_INTEGERS = {4: "INT4", 8: "INT8"}


def stored_as(kind: str, group_size: int = ROW) -> Encoding:
    """Return LiteRT's type `kind`. INT8 has a scale (fp32) for each row, INT4 one (fp16) for each
    `group_size` weights of a row."""
    bits, scale_size = _KINDS[kind]
    return Encoding(kind, bits, group_size, scale_size)


def integers(bits: int, group_size: int) -> Encoding:
    """Return LiteRT's integers of so many bits."""
    return stored_as(_INTEGERS[bits], group_size)


def encoding(name: str, shape: tuple[int, ...], options: Options) -> Encoding:
    """Return how a tensor is stored in a variant with these options."""
    if len(shape) == 1:
        return stored_as("FLOAT32")
    own = options.get("tensor_types", {}).get(name)
    if own is not None:
        return integers(*parse_type(own))
    if options["mode"] == "int4":
        return integers(4, options["group_size"])
    return stored_as(_PLAIN[options["mode"]])
