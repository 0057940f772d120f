"""Upper bounds of the anonymous memory of the ort_genai runner. No toolchain package.

The constants were measured with onnxruntime-genai 0.18 at 0.44 B and 3.8 B parameters.
"""

from __future__ import annotations

import math
import os

from phibuild.backends.ort_genai.layout import io_bytes, matmuls, product_bits, rope_cache_bytes
from phibuild.schema import Variant
from phibuild.worker.architecture import Architecture

# Building: torch, Transformers and the builder imported (285 MiB), a graph and its copies.
_BUILDER = 340 << 20
_TOKEN = 1600
"""Bytes of a token in the builder's tokenizers (310 MB with 200,000 tokens)."""
_ROPE_COPIES = 8
"""Of the rope tables, while they are computed and where longrope makes them part of the graph."""
_SLAB_BYTES = 24
"""A weight of a slab as read, turned, in the I/O type, in float32 and as codes."""
_SLAB_WEIGHTS = 1 << 20
_TURNED_ROWS = 32

# Judging: the runtime with a session (55 MiB), and its graph.
_RUNTIME = 128 << 20
_SPARE_TOKENS = 64
_LOGITS_COPIES = 6
_COMPARISON = 6 * 8 * 64
"""Bytes of a token of the vocabulary while 64 rows are compared in float64."""


def build_memory(arch: Architecture, variant: Variant) -> int:
    """Return the bound for one variant; others before it leave nothing behind.

    Weights are mapped and stream through slabs, of which each thread holds one. The largest
    product grows the slabs, which have a least number of rows, and the scales and zero points that
    wait for their turn in the file.
    """
    widest = max(max(width, outputs) for _, width, outputs, _ in matmuls(arch, variant))
    rows = _TURNED_ROWS
    if variant.options["provider"] == "trt_rtx" and variant.precision == "int4":
        rows = 2 * variant.options["block_size"]  # so that zero points are whole bytes
    slabs = (os.cpu_count() or 1) * _SLAB_BYTES * max(_SLAB_WEIGHTS, rows * widest)
    largest = max(width * outputs for _, width, outputs, _ in matmuls(arch, variant))
    waiting = 0
    if "block_size" in variant.options:
        waiting = largest // variant.options["block_size"] * (io_bytes(variant) + 1)
    rope = _ROPE_COPIES * rope_cache_bytes(arch, variant) * 4 // io_bytes(variant)
    return _BUILDER + _TOKEN * arch.vocab_size + slabs + waiting + rope


def judge_memory(arch: Architecture, variant: Variant, window_tokens: int) -> int:
    """Return the bound on the CPU: what the kernels make of the weights
    when the session starts, the KV cache, activations, logits and their comparison."""
    cache = 2 * arch.layers * arch.kv_heads * arch.head_dim * io_bytes(variant)
    activations = 4 * (8 * arch.hidden_size + 4 * arch.intermediate_size)
    logits = 4 * _LOGITS_COPIES * arch.vocab_size
    window = (window_tokens + _SPARE_TOKENS) * cache + window_tokens * (activations + logits)
    rope = 2 * rope_cache_bytes(arch, variant) * 4 // io_bytes(variant)
    comparison = _COMPARISON * arch.vocab_size
    return _RUNTIME + rope + _prepacked(arch, variant) + window + comparison


def _prepacked(arch: Architecture, variant: Variant) -> int:
    """Return the bytes of weights that ONNX Runtime holds beside the mapped file: MatMulNBits
    packed anew with scales and sums of blocks as float32 (DequantizeLinear: twice that), other
    products as float32. A fp16 embedding becomes float32 too, an fp32 one stays in the file."""
    block = variant.options.get("block_size")
    if block is None:
        return 4 * arch.parameters
    of_block = 16 if variant.options["provider"] == "trt_rtx" else 8
    total = 0
    for _, width, outputs, raised in matmuls(arch, variant):
        blocks = outputs * math.ceil(width / block)
        total += blocks * (block * product_bits(variant, raised) // 8 + of_block)
    return total
