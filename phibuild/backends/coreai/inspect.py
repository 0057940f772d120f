"""What a Core AI model on disk holds: the types of its weights, by Core AI's own reader.

Nothing of the writer is used: every constant that is kept as a resource is a weight, or the scales
of one, so that one which should not be there shows.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import coreai.authoring  # noqa: F401  # its modules import one another in this order alone
from coreai.authoring import AIModelAsset
from coreai.authoring.context import Context

from phibuild.backends.coreai.asset import constants, resource
from phibuild.backends.coreai.metadata import MODEL
from phibuild.worker.protocol import Contents

_TYPES = {"f32": ("FLOAT32", 32), "f16": ("FLOAT16", 16), "si8": ("INT8", 8), "si4": ("INT4", 4)}
_SCALED = "coreai.blockwise_shift_scale"


def inspect(folder: Path) -> Contents:
    """Return what an artifact's model holds: a weight's scales are its bytes, too."""
    types: Counter[str] = Counter()
    nbytes = 0
    with Context()._mlir_context:
        program = AIModelAsset.load(folder / MODEL).program
        for operation in constants(program._module._mlir_module):
            if resource(operation) is None:
                continue
            shape, kind = _parse(str(operation.results[0].type))
            name, bits = _TYPES[kind]
            nbytes += bits * math.prod(shape) // 8
            if not _are_scales(operation.results[0]):
                types[name] += math.prod(shape)
    return {"types": dict(types), "weight_bytes": nbytes}


def _parse(kind: str) -> tuple[tuple[int, ...], str]:
    """Return the shape and the number's type of tensor<8x4xf16>."""
    *sizes, number = kind.removeprefix("tensor<").removesuffix(">").split("x")
    return tuple(map(int, sizes)), number


def _are_scales(value: Any) -> bool:
    """Return whether a constant is the second operand of what makes floats of integers."""
    return any(use.owner.name == _SCALED and use.operand_number == 1 for use in value.uses)
