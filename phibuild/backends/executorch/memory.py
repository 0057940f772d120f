"""Upper bounds of the anonymous memory that the executorch runner takes. Standard library only."""

from __future__ import annotations

from collections.abc import Sequence

from phibuild.backends.executorch.layout import (
    PREFILL_TOKENS,
    embedding_encoding,
    factor_encoding,
    factors,
)
from phibuild.worker.architecture import Architecture
from phibuild.worker.requests import Options
from phibuild.worker.write_buffers import BUFFERS_BYTES

_BUILD_BYTES = 256 << 20
_LAYER_BYTES = 1 << 20
_JUDGE_BYTES = 512 << 20
_LOGITS_COPIES = 3
_PACKED = 1.15
"""What XNNPACK's kernels read for a byte of the file: sums of rows go with the weights."""


def build_memory(arch: Architecture, variants: Sequence[Options]) -> int:
    """Return a bound of building these together: weights are streamed; the graphs are there for
    each."""
    context: int = max(options["context"] for options in variants)
    tables = 2 * 4 * arch.head_dim * context
    each = arch.layers * _LAYER_BYTES + 3 * tables
    return _BUILD_BYTES + BUFFERS_BYTES + each * len(variants)


def judge_memory(arch: Architecture, variants: Sequence[Options], window_tokens: int) -> int:
    """Return a bound of judging variants with these options, one after the other."""
    return max(_judge(arch, options, window_tokens) for options in variants)


def _judge(arch: Architecture, options: Options, window_tokens: int) -> int:
    context: int = options["context"]
    cache = 2 * arch.layers * arch.kv_heads * arch.head_dim * context
    logits = arch.vocab_size * (_LOGITS_COPIES * window_tokens + PREFILL_TOKENS)
    weights = embedding_encoding(options).data_bytes((arch.vocab_size, arch.hidden_size))
    for name, shape in factors(arch):
        how = factor_encoding(name, options)
        packed = how.data_bytes(shape) + how.scale_bytes(shape)
        # The kernels for fp32 times fp16 have their weights as fp32.
        weights += round(_PACKED * packed) * (2 if how.kind == "FLOAT16" else 1)
    return _JUDGE_BYTES + 4 * (cache + logits) + weights
