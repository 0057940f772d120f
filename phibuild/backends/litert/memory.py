"""Upper bounds of the anonymous memory that the litert runner takes. Standard library only."""

from __future__ import annotations

from collections.abc import Sequence

from phibuild.backends.litert.layout import encoding
from phibuild.worker.architecture import Architecture
from phibuild.worker.requests import Options
from phibuild.worker.write_buffers import BUFFERS_BYTES

_BUILD_BYTES = 256 << 20
_LAYER_BYTES = 2 << 20
_ROW_BYTES = 128
_JUDGE_BYTES = 256 << 20
_LOGITS_COPIES = 3


def build_memory(arch: Architecture, variants: Sequence[Options]) -> int:
    """Return a bound of building these together: weights are streamed; the graphs, and the scales
    of rows, are there for each."""
    rows = sum(shape[0] for _, shape in arch.tensors() if len(shape) == 2)
    each = arch.layers * _LAYER_BYTES + rows * _ROW_BYTES
    return _BUILD_BYTES + BUFFERS_BYTES + each * len(variants)


def judge_memory(arch: Architecture, variants: Sequence[Options], window_tokens: int) -> int:
    """Return a bound of judging variants with these options, one after the other."""
    return max(_judge(arch, options, window_tokens) for options in variants)


def _judge(arch: Architecture, options: Options, window_tokens: int) -> int:
    context: int = options["context"]
    cache = 2 * arch.layers * arch.kv_heads * arch.head_dim * context
    logits = _LOGITS_COPIES * arch.vocab_size * window_tokens
    return _JUDGE_BYTES + 4 * (cache + logits) + _unpacked(arch, options)


def _unpacked(arch: Architecture, options: Options) -> int:
    """Return the bytes of fp16 weights as fp32: the delegate makes those when it loads a model."""
    return sum(
        2 * encoding(name, shape, options).data_bytes(shape)
        for name, shape in arch.tensors()
        if encoding(name, shape, options).kind == "FLOAT16"
    )
