"""Upper bounds of the anonymous memory that the openvino runner takes. Standard library only."""

from __future__ import annotations

from collections.abc import Sequence

from phibuild.backends.openvino.layout import encoding
from phibuild.worker.architecture import Architecture
from phibuild.worker.requests import Options
from phibuild.worker.write_buffers import BUFFERS_BYTES

# Building: Python, OpenVINO, Transformers' tokenizers, a graph and the threads' chunks (measured:
# 75 MB, and 9 MB more with 32 layers).
_BUILD_BYTES = 256 << 20
# What a token takes while the tokenizer is converted (measured: 1.25 kB with a vocabulary of 200k).
_TOKEN_BYTES = 1536

# Judging: Python, OpenVINO, the compiled graph.
_JUDGE_BYTES = 256 << 20
_LOGITS_COPIES = 6  # of a window's logits, as f32, with what compares them (measured: 5.2)


def build_memory(vocabulary: int) -> int:
    """Return a bound that neither layers nor variants change: weights go from the checkpoint to the
    artifacts a chunk of rows at a time, through the buffers of files; before that a tokenizer of
    `vocabulary` tokens is converted."""
    return _BUILD_BYTES + BUFFERS_BYTES + _TOKEN_BYTES * vocabulary


def judge_memory(arch: Architecture, variants: Sequence[Options], window_tokens: int) -> int:
    """Return a bound of judging variants with these options: the weights of the largest, which the
    CPU plugin packs for its kernels, a window's logits, activations and KV cache in f32."""
    weights = max(_packed_bytes(arch, options) for options in variants)
    activations = 4 * (arch.hidden_size + arch.intermediate_size)
    scores = arch.heads * window_tokens
    cache = 2 * arch.layers * arch.kv_heads * arch.head_dim
    values = _LOGITS_COPIES * arch.vocab_size + activations + scores + cache
    return _JUDGE_BYTES + 4 * window_tokens * values + weights


def _packed_bytes(arch: Architecture, options: Options) -> int:
    """Return what the CPU plugin holds of the weights: as they are stored, but of 4 bits the scales
    and zero points several times over and wider (measured: 7 bytes a group more)."""
    total = 0
    for name, shape in arch.tensors():
        stored = encoding(name, shape, options)
        weights, *scaling = (part.nbytes for part in stored.parts(shape))
        total += weights + sum(scaling) * (5 if stored.bits == 4 else 1)
    return total
