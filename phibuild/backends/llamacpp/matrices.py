"""The types that the matrices of a GGUF file can have, one by one."""

from __future__ import annotations

from phibuild.backends.base import MatrixTypes, TypeChoice
from phibuild.backends.llamacpp.layout import BLOCK_TYPES, FILE_TYPES, row_bytes, tensors
from phibuild.backends.mixed import GPTQ_LOSS
from phibuild.worker.architecture import Architecture
from phibuild.worker.grids import Grid
from phibuild.worker.requests import Options

ERRORS = {
    "Q4_0": 0.0074, "IQ4_XS": 0.0059, "Q4_K": 0.0051, "Q5_0": 0.00183, "Q5_1": 0.00144,
    "Q5_K": 0.00131, "Q6_K": 0.000315, "Q8_0": 0.000029,
}  # fmt: skip
"""Mean squared errors of standard normal weights, by ggml's own quantizers."""
_LARGER = {
    "Q4_0": ("Q5_0", "Q6_K", "Q8_0"),
    "IQ4_XS": ("Q4_K", "Q5_K", "Q6_K", "Q8_0"),
    "Q4_K": ("Q5_K", "Q6_K", "Q8_0"),
    "Q5_K": ("Q6_K", "Q8_0"),
}
"""Base type of a file -> what its matrices can have instead."""
_ODD = ("Q4_0", "Q5_0", "Q5_1", "Q8_0")
"""Where rows are no whole blocks of 256 weights."""


def sensitivity_grid(file_type: str) -> Grid:
    """Return the grid that is nearest to a file's base type, of those that have one."""
    zero = "middle" if FILE_TYPES[file_type].base == "Q4_0" else "code"
    return Grid(4, 32, zero, "F16")  # type: ignore[arg-type]


def matrices(arch: Architecture, options: Options) -> list[MatrixTypes]:
    """Return the matrices of a file with these options."""
    base = FILE_TYPES[options["type"]].base
    if base not in _LARGER:
        return []
    found = []
    for tensor in tensors(arch, options["type"]):
        if tensor.source is None or len(tensor.shape) == 1:
            continue
        rows, columns = tensor.shape
        kinds = (base, *_LARGER[base])
        if columns % BLOCK_TYPES["Q4_K"].weights:
            kinds = _ODD
        coded = options.get("method") == "gptq" and tensor.source.startswith("model.layers.")
        choices = tuple(
            TypeChoice(
                kind,
                rows * row_bytes(kind, columns),
                ERRORS[kind] * (GPTQ_LOSS if coded and kind == base else 1.0),
            )
            for kind in kinds
        )
        found.append(MatrixTypes(tensor.source, tensor.name, choices))
    return found
