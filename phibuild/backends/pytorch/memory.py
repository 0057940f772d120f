"""Upper bounds of the workers' anonymous memory. Standard library only: spec and workers use it.

What is bounded by a constant here is held to it by the worker, which imports the same constant.
"""

from __future__ import annotations

from phibuild.architecture import Architecture

_MEBIBYTE = 1 << 20
_FP32 = 4
_FP64 = 8
TRANSFORMERS = 400 * _MEBIBYTE
"""A worker that has imported PyTorch, Transformers and compressed-tensors (260 MiB), a tokenizer,
and a held-out text of some megabytes with its ids."""
BATCH_TOKENS = 1024
"""Tokens that go through a layer at a time, unless one window has more: enough for matrix products
at full speed."""
HEAD_ELEMENTS = 1 << 24
"""Weights of lm_head that are multiplied at a time."""
DEQUANTIZED_ELEMENTS = 1 << 23
"""Weights that are dequantized at a time."""
SOFTMAX_ROWS = 64
"""Rows of logits that are widened to float64 at a time."""


def reference_memory(arch: Architecture, windows: int, window_tokens: int) -> int:
    """Return what the original's logits over these windows take: states of all windows for both
    sets of rope factors, one layer and a part of lm_head as fp32, and one batch on its way through
    a layer. The logits are a mapped file."""
    sets = 2 if arch.rope.is_longrope else 1
    states = sets * windows * window_tokens * arch.hidden_size
    batch = _batch_elements(arch, min(max(BATCH_TOKENS, window_tokens), windows * window_tokens))
    widened = _layer_elements(arch) + HEAD_ELEMENTS
    softmax = 4 * SOFTMAX_ROWS * arch.vocab_size * _FP64
    return TRANSFORMERS + _FP32 * (states + batch + widened) + softmax


def activations_memory(arch: Architecture, tokens: int, chunk_tokens: int) -> int:
    """Return what the inputs of all linear layers over a text take: states of all tokens, one layer
    as fp32, one batch on its way through it, and the batch's inputs as float64."""
    batch = max(BATCH_TOKENS, chunk_tokens)
    inputs = batch * max(arch.hidden_size, arch.intermediate_size)
    elements = tokens * arch.hidden_size + _batch_elements(arch, batch) + _layer_elements(arch)
    return TRANSFORMERS + _FP32 * elements + _FP64 * inputs


def _layer_elements(arch: Architecture) -> int:
    """Return the weights of one layer."""
    hidden, inner = arch.hidden_size, arch.intermediate_size
    attention = arch.qkv_width * hidden + hidden * arch.heads * arch.head_dim
    return attention + 3 * inner * hidden + 2 * hidden


def _batch_elements(arch: Architecture, tokens: int) -> int:
    """Return the largest intermediate results of `tokens` tokens in a layer: residual, norm and
    either q, k, v with their rotated copies and the attention's output, or gate and up, their
    activation and product. A sliding window adds a mask."""
    attention = 3 * arch.qkv_width + 2 * arch.hidden_size
    mlp = 4 * arch.intermediate_size
    return tokens * (5 * arch.hidden_size + max(attention, mlp))
