"""Upper bounds of the anonymous memory that the coreai runner takes. Standard library only."""

from __future__ import annotations

from collections.abc import Sequence

from phibuild.backends.coreai.layout import encoding
from phibuild.worker.architecture import Architecture
from phibuild.worker.requests import Options

_BUILD_BYTES = 384 << 20
_LAYER_BYTES = 4 << 20
_JUDGE_BYTES = 512 << 20
_LOGITS_COPIES = 3
_ROOM = 512
_COPIES = 2
"""Core AI's runtime compiles a model when it opens it, and keeps both forms of its weights."""


def build_memory(arch: Architecture, variants: Sequence[Options]) -> int:
    """Return a bound of building these together: weights are streamed; the program is there for
    each."""
    return _BUILD_BYTES + arch.layers * _LAYER_BYTES * len(variants)


def judge_memory(arch: Architecture, variants: Sequence[Options], window_tokens: int) -> int:
    """Return a bound of judging variants with these options, one after the other."""
    return max(_judge(arch, options, window_tokens) for options in variants)


def _judge(arch: Architecture, options: Options, window_tokens: int) -> int:
    room = window_tokens + _ROOM
    cache = 3 * 2 * 4 * arch.layers * arch.kv_heads * arch.head_dim * room
    logits = 4 * _LOGITS_COPIES * arch.vocab_size * window_tokens
    weights = largest = 0
    for name, shape in arch.tensors():
        if len(shape) == 2:
            how = encoding(name, shape, options)
            weights += how.data_bytes(shape) + how.scale_bytes(shape)
            largest = max(largest, shape[0] * shape[1])
    return _JUDGE_BYTES + cache + logits + _COPIES * weights + 8 * largest
