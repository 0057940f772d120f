"""Names of the products of an ONNX graph, as the builder makes them. Standard library only."""

from __future__ import annotations

import re

_PARTS = re.compile(r"(?<=\.)(?:([qkv]_proj)|gate_proj|up_proj)(?=\.)")


def source_of(weight: str) -> str:
    """Return the matrix of the checkpoint that the weight of a product is, or rows of which."""
    name = weight.replace(".MatMul.", ".").replace(".attn.", ".self_attn.")
    return _PARTS.sub(lambda part: "qkv_proj" if part[1] else "gate_up_proj", name)
