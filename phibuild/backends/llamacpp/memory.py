"""What a build and a judging hold in memory. The writer keeps to it, the plan counts with it."""

from __future__ import annotations

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
