"""Upper bounds of the anonymous memory that the llamacpp runner takes, and what it keeps to.
Standard library only: the plan and the runner share it."""

from __future__ import annotations

from collections.abc import Sequence

from phibuild.backends.llamacpp.layout import variant_tensors
from phibuild.worker.architecture import Architecture
from phibuild.worker.requests import Options
from phibuild.worker.write_buffers import BUFFERS_BYTES

CHUNK_WEIGHTS = 1 << 19
"""Weights that a thread holds at a time (whole rows)."""

CHUNK_BYTES = CHUNK_WEIGHTS * 14
"""Bytes that a thread holds: weights as read, as float32 and as stored, 4 bytes each at most, and
what is found for sub-blocks."""

COMPILING_PAYS = 100_000_000
"""Weights in K-quants from which compiling their searches pays: ggml takes 6 seconds for as many,
compiled searches 1.5, compiling 4."""

COMPILER_BYTES = 96 << 20
"""numba with what it has compiled (64 MB measured), with room."""

MAX_THREADS = 32
"""Threads that a build starts, at most."""

BASE_BYTES = 96 << 20
"""Interpreter, numpy and engine (48 MB measured), with room."""

BYTES_PER_TOKEN = 1024
"""Vocabulary as it is read from tokenizer.json and encoded, one file after another (370 bytes
measured per token with its merge at 200,000 tokens), with room for longer tokens."""

PASS_TOKENS = 256
"""Tokens that go through llama.cpp's graph at a time, and the step in which contexts grow."""

LOGITS_COPIES = 8
"""Logits of a pass [T, V] in float32 that are held while judging: llama.cpp's graph and output
buffer, two copies of the judge, and what the metrics widen (6.3 measured, at V = 200,064)."""

WINDOW_COPIES = 2
"""Logits of the rest of a longer window that are held: the judge alone has them."""


def build_memory(vocabulary: int) -> int:
    """Return a bound for any variants together, whatever the model's size: interpreter, engine and
    compiler, a chunk per thread, the buffers of files, a vocabulary of so many tokens."""
    fixed = BASE_BYTES + COMPILER_BYTES + BUFFERS_BYTES
    return fixed + MAX_THREADS * CHUNK_BYTES + vocabulary * BYTES_PER_TOKEN


def judge_memory(arch: Architecture, variants: Sequence[Options], window_tokens: int) -> int:
    """Return a bound of judging variants with these options: interpreter and engine, vocabulary, a
    window's logits and KV cache and a pass's logits and activations in F32, and the packed weights
    of the largest variant. llama.cpp maps the file, but repacks what its kernels for this CPU want
    in another order (Q4_0 and Q4_K with AVX2; every packed type here somewhere)."""
    cached = -(-window_tokens // PASS_TOKENS) * PASS_TOKENS
    cache = 2 * arch.layers * arch.kv_heads * arch.head_dim
    activations = 4 * (arch.hidden_size + arch.intermediate_size) + 2 * arch.heads * cached
    passing = PASS_TOKENS * (LOGITS_COPIES * arch.vocab_size + activations)
    further = (cached - PASS_TOKENS) * WINDOW_COPIES * arch.vocab_size
    wide = passing + further + cached * cache
    repacked = max(_packed_bytes(arch, options) for options in variants)
    return BASE_BYTES + arch.vocab_size * BYTES_PER_TOKEN + 4 * wide + repacked


def _packed_bytes(arch: Architecture, options: Options) -> int:
    found = variant_tensors(arch, options)
    return sum(tensor.nbytes for tensor in found if tensor.kind not in ("F32", "F16"))
