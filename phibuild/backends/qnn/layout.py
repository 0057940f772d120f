"""How a QNN artifact stores each tensor of a checkpoint, and in which of its parts. Standard
library only: the plan (in the core) and the converter (in the toolchain) share it.

The types are those of onnxruntime-genai's model builder for fp16 graphs: MatMulNBits with symmetric
codes of 4 or 8 bits and a scale in fp16 for each block of a row, all else in fp16. An embedding
that is the output layer, too, is stored by those codes where they have 4 bits
(GatherBlockQuantized), in fp16 beside them where they have 8.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from phibuild.worker.architecture import Architecture
from phibuild.worker.encodings import Encoding, parse_type
from phibuild.worker.requests import Options

PROMPT_TOKENS = 64
"""Tokens of a prompt that the NPU takes at once."""
BLOCK = 32
"""Weights that share a scale of 8 bits: the one size that HTP has for them."""
EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
PART_BYTES = 500_000_000
"""About the most that a part's weights take, and so its context binary: one of over 2 GB cannot be
loaded, and compiling takes many times a part's size in memory."""
_FLOAT_BYTES = 2


def integers(bits: int, group_size: int) -> Encoding:
    """Return MatMulNBits' codes of so many bits: those of 8 have blocks of 32 whatever is asked."""
    return Encoding(f"INT{bits}", bits, BLOCK if bits == 8 else group_size, _FLOAT_BYTES)


FLOAT16 = Encoding("FLOAT16", 16)


def encoding(name: str, shape: tuple[int, ...], options: Options) -> Encoding:
    """Return how a tensor is stored in a variant with these options."""
    own = options.get("tensor_types", {}).get(name)
    if own is not None:
        return integers(*parse_type(own))
    if len(shape) != 2 or name == EMBEDDING:
        return FLOAT16
    return products(options)


def products(options: Options) -> Encoding:
    """Return how a variant's matrices are stored."""
    if options["mode"] == "int4":
        return integers(4, options["group_size"])
    return integers(8, BLOCK)


@dataclass(frozen=True)
class Part:
    """Layers `first` to `end` (exclusive) that are one graph on the NPU; the head has none."""

    name: str
    first: int
    end: int

    @property
    def layers(self) -> range:
        return range(self.first, self.end)


def parts(arch: Architecture, options: Options) -> list[Part]:
    """Return the parts of a model, in the order in which they run; the last is the head."""
    nbytes = sum(
        encoding(name, shape, options).nbytes(shape)
        for name, shape in arch.tensors()
        if _layer(name) is not None
    )
    count = max(1, math.ceil(nbytes / PART_BYTES))
    bounds = [round(arch.layers * number / count) for number in range(count + 1)]
    found = [Part(f"layers-{n}", bounds[n], bounds[n + 1]) for n in range(count)]
    return [*found, Part("head", arch.layers, arch.layers)]


def owners(arch: Architecture, options: Options) -> dict[str, str]:
    """Return which part has each matrix that tokens are multiplied by: that of its layer, or the
    head."""
    found = {layer: part.name for part in parts(arch, options) for layer in part.layers}
    names = [name for name, shape in arch.tensors() if len(shape) == 2 and name != EMBEDDING]
    layers = {name: _layer(name) for name in (*names, head_matrix(arch))}
    return {name: "head" if layer is None else found[layer] for name, layer in layers.items()}


def _layer(name: str) -> int | None:
    """Return the layer of a tensor, None if it is of none."""
    return int(name.split(".")[2]) if name.startswith("model.layers.") else None


def head_matrix(arch: Architecture) -> str:
    """Return the checkpoint's matrix that scores tokens."""
    return EMBEDDING if arch.tied else HEAD
