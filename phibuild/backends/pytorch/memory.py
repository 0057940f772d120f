"""Upper bounds of the workers' anonymous memory. Standard library only: spec and workers use it.

What is bounded by a constant here is held to it by the worker, which imports the same constant.
"""

from __future__ import annotations

from phibuild.worker.architecture import Architecture
from phibuild.worker.write_buffers import BUFFERS_BYTES

_MEBIBYTE = 1 << 20
_FP32 = 4
_FP64 = 8
TORCH = 200 * _MEBIBYTE
"""A worker that has imported PyTorch (150 MiB) and read the checkpoint's headers."""
TRANSFORMERS = 400 * _MEBIBYTE
"""A worker that has imported PyTorch, Transformers and compressed-tensors (260 MiB), a tokenizer,
and a held-out text of some megabytes with its ids."""
_TOKENIZER = 64 * _MEBIBYTE
"""What Transformers' tokenizers add to that (20 MiB), and each token of one (800 bytes; 323 MiB in
all measured with 200,000 tokens)."""
_TOKEN = 1024
CHUNK_ELEMENTS = 1 << 18
"""Weights that a thread converts at a time, unless `CHUNK_ROWS` rows have more."""
CHUNK_ROWS = 32
"""A multiple of the rows that one int32 of packed zero points holds."""
_CHUNK_COPIES = 20
"""Bytes of a weight in all intermediate results of its conversion: as read, in the artifact's
dtype, divided, and as codes of 16 and 8 bits; 4 bytes each at most."""
_THREADS = 32
BATCH_TOKENS = 1024
"""Tokens that go through a layer at a time, unless one window has more: enough for matrix products
at full speed."""
HEAD_ELEMENTS = 1 << 24
"""Weights of lm_head that are multiplied at a time."""
DEQUANTIZED_ELEMENTS = 1 << 23
"""Weights that are dequantized at a time."""
WIDENED_BYTES = 2 << 30
"""fp32 weights of an artifact that stay in memory while it runs."""
SHORT_WINDOW = 512
"""Tokens of a window below which the bound of judging is no lower."""
WITNESS_BYTES = 2_000_000_000
"""fp32 weights of a model that the witness runs as a whole on any machine."""
_TOKEN_BYTES = 2048
"""A token of the vocabulary in Transformers' tokenizer, and in what is written of it."""
MERGED_ELEMENTS = 1 << 22
"""Weights that get an adapter's part at a time, unless `MERGED_ROWS` rows have more."""
MERGED_ROWS = 32
_PRODUCTS = 64 * _MEBIBYTE
"""What PyTorch's library packs for a product of matrices, and the holes that blocks of many sizes
leave in the heap (31 MiB beyond all else measured, from run to run)."""
GPTQ_ELEMENTS = 1 << 22
"""Weights that a thread puts on a grid at a time."""
GPTQ_TOKENS = 512
"""Tokens that go through a layer at a time where the Hessians of its inputs are added up: they take
the room."""
GPTQ_THREADS = 8
"""Threads that do so at most."""
_GPTQ_COPIES = 5
"""Copies of them in fp32: as they are read, by columns, a block's errors, and what a group's search
for a scale takes; codes besides."""
SENSITIVITY_TOKENS = 512
"""Tokens that go through a layer, or are multiplied by a part of lm_head, at a time."""
SOFTMAX_ROWS = 64
"""Rows of logits that are widened to float64 at a time."""


def build_memory(arch: Architecture) -> int:
    """Return what building any variants together takes with up to 32 threads: a chunk of rows for
    each thread, which converts it for one variant after the other, and the buffers of the files;
    when these are gone, Transformers loads a tokenizer."""
    widest = max(arch.hidden_size, arch.intermediate_size, arch.heads * arch.head_dim)
    chunk = max(CHUNK_ELEMENTS, CHUNK_ROWS * widest)
    converting = BUFFERS_BYTES + _THREADS * _CHUNK_COPIES * chunk
    return TORCH + max(converting, _TOKENIZER + _TOKEN * arch.vocab_size)


def witness_layers(arch: Architecture, memory: int) -> tuple[int, ...] | None:
    """Return the layers that the witness runs: all (None) of a model that as fp32 takes no more
    than 2 GB, or a quarter of `memory` bytes; else the first and the last."""
    if arch.layers <= 2 or _FP32 * arch.parameters <= max(WITNESS_BYTES, memory // 4):
        return None
    return 0, arch.layers - 1


def source_memory(arch: Architecture, layers: tuple[int, ...] | None) -> int:
    """Return what reading the source takes: Transformers' tokenizer, then its own model of these
    layers, the embedding and lm_head as they are stored and a layer's worth of both on the way;
    phibuild's own reading of it comes after it and takes less."""
    count = arch.layers if layers is None else len(layers)
    ends = (1 if arch.tied else 2) * arch.vocab_size * arch.hidden_size
    held = _FP32 * (count * _layer_elements(arch) + ends)
    return TRANSFORMERS + _TOKEN_BYTES * arch.vocab_size + held + _FP32 * _layer_elements(arch)


def merge_memory(arch: Architecture, rank: int) -> int:
    """Return what writing canonical weights takes with an adapter of ranks up to `rank`: a chunk
    of rows as it is stored, its product in fp32, once more while that is scaled and rounded, what
    finds weights that are not finite (a byte each, and the bits), fp32 copies of A and of a chunk
    of B (for an embedding these change places), and the product itself. Files are mapped."""
    widest = max(arch.hidden_size, arch.intermediate_size, arch.heads * arch.head_dim)
    chunk = max(MERGED_ELEMENTS, MERGED_ROWS * widest)
    factors = rank * (widest + max(chunk // arch.hidden_size, widest))
    return TORCH + BUFFERS_BYTES + _PRODUCTS + _FP32 * (4 * chunk + factors)


def reference_memory(arch: Architecture, windows: int, window_tokens: int) -> int:
    """Return what the original's logits over these windows take: states of all windows for both
    sets of rope factors, one layer and a part of lm_head as fp32, and one batch on its way through
    a layer. The logits are a mapped file."""
    sets = 2 if arch.rope.is_longrope else 1
    states = sets * windows * window_tokens * arch.hidden_size
    tokens = min(max(BATCH_TOKENS, window_tokens), windows * window_tokens)
    batch = _batch_elements(arch, tokens) + arch.heads * tokens * window_tokens
    widened = _layer_elements(arch) + HEAD_ELEMENTS
    softmax = 4 * SOFTMAX_ROWS * arch.vocab_size * _FP64
    return TRANSFORMERS + _FP32 * (states + batch + widened) + softmax


def activations_memory(arch: Architecture, tokens: int, chunk_tokens: int) -> int:
    """Return what the inputs of all linear layers over a text take: states of all tokens, one layer
    as fp32, one batch on its way through it and the batch's inputs as float64, these thrice:
    blocks of many sizes leave holes in the heap (500 to 793 MiB measured at 0.44 B parameters, from
    run to run, where what is in use comes to 660 at most)."""
    batch = max(BATCH_TOKENS, chunk_tokens)
    inputs = batch * max(arch.hidden_size, arch.intermediate_size)
    passing = _FP32 * _batch_elements(arch, batch) + _FP64 * inputs
    held = _FP32 * (tokens * arch.hidden_size + _layer_elements(arch))
    return TRANSFORMERS + held + 3 * passing


def quantize_memory(arch: Architecture, tokens: int, chunk_tokens: int) -> int:
    """Return what GPTQ over a text takes: states of all tokens, and either one layer as fp32 with a
    batch on its way through it and the Hessians of its four linear layers, or the largest of these
    with its factor, and rows of its matrix in each thread."""
    attention = arch.heads * arch.head_dim
    widths = (arch.hidden_size, attention, arch.hidden_size, arch.intermediate_size)
    hessians, largest = sum(width * width for width in widths), max(widths) ** 2
    batch = max(GPTQ_TOKENS, chunk_tokens)
    reversed_inputs = batch * max(widths)
    passing = _layer_elements(arch) + _batch_elements(arch, batch) + reversed_inputs + hessians
    rows = GPTQ_THREADS * _GPTQ_COPIES * max(GPTQ_ELEMENTS, 32 * max(widths))
    factorizing = hessians + largest + largest // 4 + rows
    held = tokens * arch.hidden_size
    return TRANSFORMERS + _FP32 * (held + max(passing, factorizing))


def sensitivity_memory(arch: Architecture, tokens: int, chunk_tokens: int) -> int:
    """Return what measuring each matrix's sensitivity over a text takes: the original's states, one
    layer as fp32 and its largest matrix twice more, or a part of lm_head on its grid and as many
    logits for a batch, in float64; what searches for scales; and a batch on its way. The states of
    the models that are measured are a mapped file."""
    hidden, inner = arch.hidden_size, arch.intermediate_size
    matrix = max(2 * inner * hidden, arch.qkv_width * hidden)
    batch = max(SENSITIVITY_TOKENS, chunk_tokens)
    rows = max(HEAD_ELEMENTS // hidden, 1)
    head = 8 * HEAD_ELEMENTS + 5 * (_FP64 // _FP32) * batch * rows
    passing = _layer_elements(arch) + matrix + 8 * GPTQ_ELEMENTS + _batch_elements(arch, batch)
    scores = arch.heads * batch * chunk_tokens
    held = tokens * hidden + 2 * batch * hidden
    return TRANSFORMERS + _FP32 * (held + max(passing + scores, head))


def sensitivity_states(arch: Architecture, tokens: int) -> int:
    """Return the bytes of the states of the original and of all models that are measured, and of
    those that are written next."""
    return _FP32 * (4 * arch.layers + 3) * tokens * arch.hidden_size


def judge_memory(arch: Architecture, window_tokens: int) -> int:
    """Return what running an artifact of any precision takes: kept fp32 weights, a layer and a part
    of lm_head beside them, the key-value cache and one window on its way through a layer, its
    logits with those of the first window, and what compares them."""
    tokens = max(window_tokens, SHORT_WINDOW)
    kept = min(WIDENED_BYTES, _FP32 * arch.parameters)
    widened = _layer_elements(arch) + HEAD_ELEMENTS
    # Codes as int8 and once more on the way there, then twice in the dtype of the scales (4 bytes
    # at most).
    dequantized = 10 * DEQUANTIZED_ELEMENTS
    cache = 2 * arch.layers * arch.kv_heads * arch.head_dim * tokens
    logits = 3 * arch.vocab_size * tokens
    softmax = 8 * SOFTMAX_ROWS * arch.vocab_size * _FP64
    batch = _batch_elements(arch, tokens) + arch.heads * tokens * tokens
    elements = widened + cache + batch + logits
    return TRANSFORMERS + kept + _FP32 * elements + dequantized + softmax


def _layer_elements(arch: Architecture) -> int:
    """Return the weights of one layer."""
    hidden, inner = arch.hidden_size, arch.intermediate_size
    attention = arch.qkv_width * hidden + hidden * arch.heads * arch.head_dim
    return attention + 3 * inner * hidden + 2 * hidden


def _batch_elements(arch: Architecture, tokens: int) -> int:
    """Return the largest intermediate results of `tokens` tokens in a layer: residual, norm and
    either q, k, v with their rotated copies and the attention's output, or gate and up, their
    activation and product. Attention's scores are not among them."""
    attention = 3 * arch.qkv_width + 2 * arch.hidden_size
    mlp = 4 * arch.intermediate_size
    return tokens * (5 * arch.hidden_size + max(attention, mlp))
