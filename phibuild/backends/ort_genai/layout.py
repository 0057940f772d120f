"""How an ONNX artifact stores each tensor, and its rope caches.

They are those of the model builder of onnxruntime-genai. MatMulNBits stores a weight [K, N] as N
rows of ceil(K / block) blocks: the packed bits of a whole number of blocks, one scale of the I/O
type per block and, if not symmetric, zero points of the weights' width, each row rounded up to
bytes (ONNX Runtime, ContribOperators.md, com.microsoft.MatMulNBits).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from phibuild.backends.base import MatrixTypes, StoredTensor, TypeChoice
from phibuild.backends.mixed import GPTQ_LOSS, affine_error
from phibuild.backends.ort_genai.products import source_of
from phibuild.schema import Variant
from phibuild.worker.architecture import Architecture


def io_bytes(variant: Variant) -> int:
    """Return the bytes of an input or output element: fp32 on cpu, fp16 elsewhere."""
    return 4 if variant.options["provider"] == "cpu" else 2


def _float_kind(variant: Variant) -> str:
    return "FLOAT" if io_bytes(variant) == 4 else "FLOAT16"


def mixed_layers(layers: int) -> list[int]:
    """Return the layers that `mixed_layers` raises to int8: the first and last eighth and every
    third between (the builder's `make_matmul_mixed_precision`, after llama.cpp)."""
    return [
        layer
        for layer in range(layers)
        if layer < layers / 8 or layer >= 7 * layers / 8 or (layer - round(layers / 8)) % 3 == 2
    ]


def matmuls(arch: Architecture, variant: Variant) -> Iterator[tuple[str, int, int, bool]]:
    """Yield name, K (inputs), N (outputs) of every product, and whether a selector raises it, or
    the type of its own."""
    types = variant.options.get("tensor_types", {})
    for name, width, outputs, raised in _products(arch, variant):
        yield name, width, outputs, raised or types.get(source_of(name)) == "int8"


def _products(arch: Architecture, variant: Variant) -> Iterator[tuple[str, int, int, bool]]:
    hidden, inner = arch.hidden_size, arch.intermediate_size
    selectors = variant.options.get("int8_matmuls", ())
    raised = set(mixed_layers(arch.layers)) if "mixed_layers" in selectors else set()
    query, key = arch.heads * arch.head_dim, arch.kv_heads * arch.head_dim
    for layer in range(arch.layers):
        prefix = f"model.layers.{layer}."
        if variant.options["provider"] == "dml":  # it has no packed attention input
            yield prefix + "attn.q_proj.MatMul.weight", hidden, query, False
            yield prefix + "attn.k_proj.MatMul.weight", hidden, key, False
            yield prefix + "attn.v_proj.MatMul.weight", hidden, key, layer in raised
        else:
            yield prefix + "attn.qkv_proj.MatMul.weight", hidden, arch.qkv_width, layer in raised
        yield prefix + "attn.o_proj.MatMul.weight", query, hidden, False
        yield prefix + "mlp.gate_proj.MatMul.weight", hidden, inner, False
        yield prefix + "mlp.up_proj.MatMul.weight", hidden, inner, False
        yield prefix + "mlp.down_proj.MatMul.weight", inner, hidden, layer in raised
    yield "lm_head.MatMul.weight", hidden, arch.vocab_size, "last_matmul" in selectors


def product_bits(variant: Variant, raised: bool) -> int:
    """Return the bits of a weight of a product in a quantized variant."""
    return 8 if raised or variant.precision == "int8" else 4


def _quantized_bytes(width: int, outputs: int, bits: int, variant: Variant) -> int:
    options = variant.options
    block: int = options["block_size"]
    blocks = math.ceil(width / block)
    if options["provider"] == "trt_rtx":  # DequantizeLinear packs [K, N] with no padding
        packed = math.ceil(width * outputs * bits / 8)
        zero_points = math.ceil(blocks * outputs * bits / 8)
    else:
        packed = outputs * blocks * block * bits // 8
        zero_points = outputs * math.ceil(blocks * bits / 8)
    scales = outputs * blocks * io_bytes(variant)
    return packed + scales + (0 if options["symmetric"] else zero_points)


def _has_own_embedding(arch: Architecture, variant: Variant) -> bool:
    """Whether the embedding is stored beside lm_head. A tied one is the same initializer, but for
    int8 (gathering from blocks is for 4 bits) and TensorRT-RTX's int4 (not from blocks at all)."""
    if not arch.tied:
        return True
    trt_rtx = variant.options["provider"] == "trt_rtx"
    return variant.precision == "int8" or (variant.precision == "int4" and trt_rtx)


def stored_tensors(arch: Architecture, variant: Variant) -> list[StoredTensor]:
    """Return every weight as the graph stores it. Kinds: int4, int8, FLOAT, FLOAT16."""
    kind, item = _float_kind(variant), io_bytes(variant)
    stored = []
    if _has_own_embedding(arch, variant):
        count = arch.vocab_size * arch.hidden_size
        stored.append(StoredTensor("model.embed_tokens.weight", kind, count, count * item))
    norms = [
        f"model.layers.{layer}.{norm}_layernorm.weight"
        for layer in range(arch.layers)
        for norm in ("input", "post_attention")
    ]
    norms.append(f"model.layers.{arch.layers}.final_norm_layernorm.weight")
    hidden = arch.hidden_size
    stored += [StoredTensor(name, kind, hidden, hidden * item) for name in norms]
    quantized = variant.precision in ("int4", "int8")
    for name, width, outputs, raised in matmuls(arch, variant):
        count = width * outputs
        if not quantized:
            stored.append(StoredTensor(name, kind, count, count * item))
        else:
            bits = product_bits(variant, raised)
            nbytes = _quantized_bytes(width, outputs, bits, variant)
            stored.append(StoredTensor(name, f"int{bits}", count, nbytes))
    return stored


def matrix_types(arch: Architecture, variant: Variant) -> list[MatrixTypes]:
    """Return the matrices whose products can have 8 bits in an int4 variant: all, but for the
    embedding of a tied model, which the graph reads too."""
    block: int = variant.options["block_size"]
    gptq = GPTQ_LOSS if variant.options.get("method") == "gptq" else 1.0
    errors = {4: affine_error(4, block) * gptq, 8: affine_error(8, block)}
    sizes: dict[str, dict[int, int]] = {}
    for name, width, outputs, _ in matmuls(arch, variant):
        if not (arch.tied and name.startswith("lm_head")):
            both = sizes.setdefault(source_of(name), dict.fromkeys(errors, 0))
            for bits in both:
                both[bits] += _quantized_bytes(width, outputs, bits, variant)
    return [
        MatrixTypes(
            name,
            name,
            tuple(TypeChoice(f"int{bits}", both[bits], error) for bits, error in errors.items()),
        )
        for name, both in sizes.items()
    ]


def rope_cache_bytes(arch: Architecture, variant: Variant) -> int:
    """Return the bytes of the cos and sin tables: a row of rotary_dim / 2 for each position;
    with longrope one table of the short factors and one of the long."""
    rows = arch.max_positions
    if arch.rope.is_longrope:
        rows += arch.original_max_positions
    return 2 * rows * (arch.rotary_dim // 2) * io_bytes(variant)


def cache_scales_bytes(arch: Architecture, variant: Variant) -> int:
    """Return the bytes of the scales of an int8 KV cache: a float for each channel of the keys and
    of the values of a layer."""
    channels = 2 * arch.layers * arch.kv_heads * arch.head_dim
    return 4 * channels if "kv_cache" in variant.options else 0
