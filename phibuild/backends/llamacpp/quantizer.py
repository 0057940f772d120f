"""Choose what stores K-quants: searches compiled here for many weights, ggml's own for few.

Both have the same bits. That is so as long as llama.cpp's library was compiled without fused
multiplications and additions, which nothing in it tells: it is tried on weights of all kinds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable

import numpy as np

from phibuild.backends.llamacpp import ggml
from phibuild.backends.llamacpp.layout import BLOCK_TYPES, K_QUANTS, Tensor
from phibuild.backends.llamacpp.memory import COMPILING_PAYS

Quantize = Callable[[str, ggml.Floats, int, ggml.Bytes, ggml.Floats | None], int]
"""What `ggml.quantize` takes and returns."""

_SUPER = 256
_SAMPLE_ROWS = 512


def choose(tensors: Iterable[Tensor], say: Callable[[str], None]) -> Quantize:
    """Return what quantizes the rows of `tensors` fastest, of all files together: compiling costs
    about five seconds. `say` is told if that is done."""
    searched = [tensor for tensor in tensors if tensor.kind in K_QUANTS]
    if sum(tensor.parameters for tensor in searched) < COMPILING_PAYS:
        return ggml.quantize
    say("compiling the searches")
    try:
        from phibuild.backends.llamacpp import kquants
    except ImportError as error:  # no numba: not Linux on x86-64, or a machine it does not run on
        print(f"ggml's own K-quant searches are used: {error}", file=sys.stderr)
        return ggml.quantize
    wanted = {tensor.kind for tensor in searched}
    agreed = {kind for kind in wanted if _agree(kind)}
    for kind in sorted(wanted - agreed):
        print(f"ggml's own search is used for {kind}: it rounds otherwise here", file=sys.stderr)

    def quantize(
        kind: str,
        rows: ggml.Floats,
        columns: int,
        out: ggml.Bytes,
        importance: ggml.Floats | None = None,
    ) -> int:
        if kind not in agreed:
            return ggml.quantize(kind, rows, columns, out, importance)
        odd = kquants.quantize(kind, rows, columns, out, importance)
        size = BLOCK_TYPES[kind].nbytes
        for block in np.flatnonzero(odd):
            first = block * _SUPER
            weighed = None
            if importance is not None:
                weighed = importance[first % columns : first % columns + _SUPER]
            ggml.quantize(kind, rows[first : first + _SUPER], _SUPER, out[block * size :], weighed)
        return len(odd) * size

    return quantize


def _agree(kind: str) -> bool:
    """Return whether ggml stores a sample of weights as the compiled search does, with and without
    an importance matrix."""
    from phibuild.backends.llamacpp import kquants

    random = np.random.default_rng(0)
    rows = random.standard_normal((_SAMPLE_ROWS, _SUPER)).astype(np.float32)
    rows *= np.exp2(random.integers(-12, 12, (_SAMPLE_ROWS, 1))).astype(np.float32)
    rows[::4] *= random.standard_normal((_SAMPLE_ROWS // 4, _SUPER)).astype(np.float32) ** 2
    flat = np.ascontiguousarray(rows).reshape(-1)
    importance = random.random(_SUPER, np.float32)
    ours, theirs = np.zeros((2, _SAMPLE_ROWS, BLOCK_TYPES[kind].nbytes), np.uint8)
    for weighed in (None, importance):
        odd = kquants.quantize(kind, flat, _SUPER, ours.reshape(-1), weighed)
        ggml.quantize(kind, flat, _SUPER, theirs.reshape(-1), weighed)
        if not np.array_equal(ours[~odd], theirs[~odd]):
            return False
    return True
