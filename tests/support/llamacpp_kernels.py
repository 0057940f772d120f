"""Compare phibuild's compiled K-quants with ggml's own and with a scalar reference, bit for bit;
runs in llamacpp's toolchain.

`python llamacpp_kernels.py` prints what differs, one line each, and nothing if all agree.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
COLUMNS = 1024
WEIGHTS = 100 * COLUMNS  # not a multiple of what is searched at once
REFERENCE_BLOCKS = (0, 57, 399)  # of 256 weights: the first, one of other columns, the last


def hard_weights() -> dict[str, Floats]:
    """Return weights [WEIGHTS] that meet each branch of the searches."""
    random = np.random.default_rng(0)
    normal = random.standard_normal(WEIGHTS).astype(np.float32)
    rare = np.where(random.random(WEIGHTS) < 0.02, normal, np.float32(0))
    sizes = np.exp(3 * random.standard_normal(WEIGHTS // 32)).astype(np.float32)
    return {
        "normal": normal * np.float32(0.02),
        "heavy tails": normal**5,
        "whole numbers: ties": random.integers(-8, 8, WEIGHTS).astype(np.float32),
        "positive": np.abs(normal),
        "negative": -np.abs(normal),
        "far from zero": 5 + normal * np.float32(0.001),
        "nearly equal": 1 + normal * np.float32(1e-7),
        "equal in a sub-block": np.repeat(normal[: WEIGHTS // 32], 32),
        "zero": np.zeros(WEIGHTS, np.float32),
        "negative zero": -np.zeros(WEIGHTS, np.float32),
        "few that are not zero": rare,
        "sub-blocks of many sizes": normal * np.repeat(sizes, 32),
        "super-blocks of many sizes": normal * np.repeat(sizes[: WEIGHTS // 256], 256),
        "tiny": normal * np.float32(1e-12),
        "denormal": normal * np.float32(1e-40),
        "scales near the end of half precision": normal * np.float32(1e5),
        "beyond half precision": normal * np.float32(1e9),
        "squares beyond float32": normal * np.float32(1e30),
    }


def importances() -> dict[str, Floats | None]:
    random = np.random.default_rng(1)
    skewed = random.standard_normal(COLUMNS).astype(np.float32) ** 4
    holes = skewed * (random.random(COLUMNS) < 0.7)
    return {"": None, "importance": skewed, "some of no importance": holes.astype(np.float32)}


def large() -> list[Any]:
    """Return tensors in every K-quant for which compiling pays."""
    from phibuild.backends.llamacpp.layout import K_QUANTS, Tensor

    return [Tensor(kind, kind, (1 << 15, 1 << 15), kind) for kind in K_QUANTS]


def where_they_disagree() -> Iterator[str]:
    """Say where ggml's own search is not used though a trial found that it rounds otherwise."""
    from phibuild.backends.llamacpp import ggml, quantizer

    quantizer._agree = lambda kind: False
    sys.stderr = io.StringIO()
    quantize = quantizer.choose(large(), lambda text: None)
    said, sys.stderr = sys.stderr.getvalue(), sys.__stderr__
    if said.count("rounds otherwise here") != 3:
        yield said
    weights = hard_weights()["normal"]
    own, theirs = np.zeros((2, 4 * WEIGHTS), np.uint8)
    quantize("Q4_K", weights, COLUMNS, own, None)
    ggml.quantize("Q4_K", weights, COLUMNS, theirs)
    if own.tobytes() != theirs.tobytes():
        yield "a search that disagrees is used"


def differences() -> Iterator[str]:
    from phibuild.backends.llamacpp import ggml, quantizer
    from phibuild.backends.llamacpp.layout import BLOCK_TYPES, K_QUANTS

    quantize = quantizer.choose(large(), lambda text: None)
    if quantize is ggml.quantize:
        yield "no search was compiled"
    for kind in K_QUANTS:
        size = BLOCK_TYPES[kind].nbytes * WEIGHTS // 256
        for name, weights in hard_weights().items():
            for told, importance in importances().items():
                ours, theirs = np.full((2, size + 1), 255, np.uint8)
                written = {
                    function(kind, weights, COLUMNS, out, importance)
                    for function, out in ((quantize, ours), (ggml.quantize, theirs))
                }
                if written != {size} or ours.tobytes() != theirs.tobytes():
                    yield f"{kind}: {name} {told}"


def from_a_reference() -> Iterator[str]:
    """Say where some super-blocks of Q4_K and Q5_K, and the scales found for their sub-blocks, are
    not those of a scalar search; where it cannot round a number, ggml is to store the block."""
    from support import kquant_reference as reference

    for kind in reference.TOPS:
        for name, weights in hard_weights().items():
            for told, importance in importances().items():
                with np.errstate(all="ignore"):
                    wrong = [*_not_the_reference(kind, weights, importance)]
                yield from (f"{kind}: {name} {told}: {what}" for what in wrong)


def _not_the_reference(kind: str, weights: Floats, importance: Floats | None) -> Iterator[str]:
    from phibuild.backends.llamacpp import ggml, kquants
    from phibuild.backends.llamacpp.layout import BLOCK_TYPES
    from support import kquant_reference as reference

    size = BLOCK_TYPES[kind].nbytes
    ours, theirs = np.zeros((2, WEIGHTS // 256, size), np.uint8)
    odd = kquants.quantize(kind, weights, COLUMNS, ours.reshape(-1), importance)
    found = kquants.find_affine(weights, kind, importance)
    ggml.quantize(kind, weights, COLUMNS, theirs.reshape(-1), importance)
    for block in REFERENCE_BLOCKS:
        start = 256 * block
        columns = None
        if importance is not None:
            columns = importance[start % COLUMNS : start % COLUMNS + 256]
        inside = weights[start : start + 256]
        try:
            fits = reference.search_super_block(inside, kind, columns)
            expected = reference.encode(inside, fits, kind, weighed=columns is not None)
        except reference.OutOfRange:
            if not odd[block]:
                yield f"block {block} is out of range"
            continue
        if expected != theirs[block].tobytes():
            yield f"ggml's block {block}"
        if not odd[block] and expected != ours[block].tobytes():
            yield f"block {block}"
        for place, fit in enumerate(fits, 8 * block):
            own = (found.scales[place], found.mins[place], found.sums[place])
            if not found.odd[place] and own != (fit.scale, fit.minimum, fit.total):
                yield f"scale, minimum or sum of sub-block {place}"


def main() -> None:
    for line in (*differences(), *from_a_reference(), *where_they_disagree()):
        print(line)


if __name__ == "__main__":
    sys.path[:0] = map(str, Path(__file__).resolve().parents[1:3])
    main()
