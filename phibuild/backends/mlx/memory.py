"""Upper bounds of the anonymous memory that the mlx runner takes, and what it keeps to. Standard
library only: the plan and the runtime share it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence

from phibuild.backends.mlx.layout import module_order, stored_arrays
from phibuild.worker.architecture import Architecture
from phibuild.worker.requests import Options
from phibuild.worker.write_buffers import BUFFERS_BYTES

RESIDENT_BYTES = 1 << 30
"""A model in mlx-lm's own kernels stays in memory up to so many bytes of weights."""

# Anonymous bytes. The converter: the interpreter with numpy, and MLX for microscaling types; then
# for each thread a block of 2^18 weights with what is made of it, and freed memory that it keeps
# (33 MB in all measured with two threads and four variants at 0.44 B and 3.8 B).
_INTERPRETER_BYTES = 96 << 20
_THREAD_BYTES = 48 << 20
# Comparing the tokenizer: mlx-lm and Transformers imported, and each token (345 MiB in all measured
# with 200,000 tokens, 96 MiB with 32,000).
_TRANSFORMERS_BYTES = 32 << 20
_TOKEN_BYTES = 2048
# Judging: mlx-lm and transformers; for each thread a block of 2^20 weights and what it keeps.
_JUDGE_BYTES = 192 << 20
_JUDGE_THREAD_BYTES = 96 << 20


def build_memory(vocabulary: int) -> int:
    """Return a bound that depends neither on the model's weights nor on how many variants there
    are: each thread holds one block and what is made of it, the process the buffers of its files;
    when these are gone, Transformers loads a tokenizer of `vocabulary` tokens."""
    threads = _THREAD_BYTES * (os.cpu_count() or 1)
    tokenizer = _TRANSFORMERS_BYTES + _TOKEN_BYTES * vocabulary
    return _INTERPRETER_BYTES + BUFFERS_BYTES + max(threads, tokenizer)


def judge_memory(arch: Architecture, variants: Sequence[Options], window_tokens: int) -> int:
    """Return a bound that does not hold the weights: they are read as they are used.

    In mlx-lm's own kernels they are held up to `RESIDENT_BYTES`, else a module at a time. Then
    the KV caches in fp32, activations of a window, and what the vocabulary takes: four times
    a window's logits and the comparison in float64.
    """
    kernels = max(_kernel_bytes(arch, options) for options in variants)
    cache = 2 * arch.layers * arch.kv_heads * arch.head_dim * 2 * window_tokens * 4
    scores = arch.heads * window_tokens * window_tokens
    width = 4 * arch.intermediate_size + 8 * arch.hidden_size
    activations = 4 * (window_tokens * width + 3 * scores)
    logits = arch.vocab_size * (4 * 4 * window_tokens + 6 * 8 * 64)
    threads = _JUDGE_THREAD_BYTES * (os.cpu_count() or 1)
    return _JUDGE_BYTES + threads + kernels + 2 * cache + activations + logits


def _kernel_bytes(arch: Architecture, options: Options) -> int:
    """Return how many bytes of weights mlx-lm's kernels have in memory at once: all with their
    floats widened to fp32, or the largest module's as stored and as widened."""
    stored: Counter[str] = Counter()
    widened: Counter[str] = Counter()
    for name, shape in module_order(arch):
        module = name.rpartition(".self_attn")[0] or name.rpartition(".mlp")[0] or name
        for array in stored_arrays(name, shape, arch.layers, options):
            stored[module] += array.nbytes
            narrow = array.dtype in ("F16", "BF16")
            widened[module] += 2 * array.nbytes if narrow else array.nbytes
    if widened.total() <= RESIDENT_BYTES:
        return widened.total()
    return max(stored[module] + widened[module] for module in stored)
