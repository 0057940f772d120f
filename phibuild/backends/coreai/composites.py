"""The three operations that Core AI has kernels for, as graphs of their own: rotary embedding,
attention, RMS norm.

Each is declared by Apple's name and attributes (coreai-torch 0.4, composite_ops), by which a
compiler may take its own kernel, and is written out for one that has none.
"""

from __future__ import annotations

from phibuild.backends.coreai.mlir import Block, Value
from phibuild.worker.architecture import Architecture

ROPE_QUERIES, ROPE_KEYS, ATTENTION, NORM = "rope_queries", "rope_keys", "attention", "rms_norm"
_MASKED = -1e4  # fp16 holds it


def composites(arch: Architecture, kind: str) -> list[str]:
    """Return the graphs of a model that is computed in a type, f16 or f32."""
    return [
        _rope(arch, kind, ROPE_QUERIES, arch.heads),
        _rope(arch, kind, ROPE_KEYS, arch.kv_heads),
        _attention(arch, kind),
        _norm(arch, kind),
    ]


def _rope(arch: Architecture, kind: str, name: str, heads: int) -> str:
    """input [1, heads, T, head_dim], position_ids [1, T], freqs [rotary_dim / 2] fp32."""
    block, half = Block(), arch.rotary_dim // 2
    x = Value("%arg0", (1, heads, None, arch.head_dim), kind)
    positions, frequencies = Value("%arg1", (1, None), "si32"), Value("%arg2", (half,), "f32")
    column = block.expand(block.cast(block.expand(positions, 1), "f32"), -1)
    angles = block.binary("mul", column, frequencies)
    cos = block.cast(block.unary("cos", angles), kind)
    sin = block.cast(block.unary("sin", angles), kind)
    low, high = block.part(x, 3, 0, half), block.part(x, 3, half, 2 * half)
    turned = [
        block.binary("sub", block.binary("mul", cos, low), block.binary("mul", sin, high)),
        block.binary("add", block.binary("mul", sin, low), block.binary("mul", cos, high)),
    ]
    turned = [Value(one.name, low.shape, kind) for one in turned]
    if 2 * half < arch.head_dim:
        turned.append(block.part(x, 3, 2 * half, arch.head_dim))
    result = block.concat(3, *turned)
    attributes = (
        f"base = {arch.rope.theta:e} : f32, dims = {2 * half} : si64, interleaved = false, "
        "scale = 1.000000e+00 : f32, version = 1 : si64"
    )
    inputs = {"input": x, "position_ids": positions, "freqs": frequencies}
    return _graph(block, name, inputs, result, "rope", attributes)


def _attention(arch: Architecture, kind: str) -> str:
    """query [1, heads, T, head_dim], key and value [1, kv_heads, S, head_dim]: the last T of S
    tokens ask."""
    block, width = Block(), arch.head_dim
    query = Value("%arg0", (1, arch.heads, None, width), kind)
    key, value = (Value(name, (1, arch.kv_heads, None, width), kind) for name in ("%arg1", "%arg2"))
    asked, seen = block.size(query, 2), block.size(key, 2)
    none = block.integers([], "ui32")
    end = block.reshape(seen, none, ())
    first = block.reshape(block.binary("sub", seen, asked), none, ())
    rows = block.expand(block.range(first, end), 1)
    columns = block.expand(block.range(block.integers(0), end), 0)
    later = block.binary("greater", columns, rows, "i1")
    hidden = block.binary("mul", block.cast(later, kind), block.number(_MASKED, kind))
    keys, values = (_repeated(block, one, arch) for one in (key, value))
    scaled = block.binary("mul", query, block.number(width**-0.5, kind))
    scores = block.matmul(scaled, block.transpose(keys, (0, 1, 3, 2)))
    shares = block.softmax(block.binary("add", scores, hidden))
    result = block.matmul(shares, values)
    attributes = (
        f"is_causal = true, scale = {width**-0.5:e} : f32, version = 1 : si64, "
        "window_size = 0 : si64"
    )
    inputs = {"query": query, "key": key, "value": value}
    return _graph(block, ATTENTION, inputs, result, "scaled_dot_product_attention", attributes)


def _repeated(block: Block, x: Value, arch: Architecture) -> Value:
    """Return keys or values with those that heads share once for each head."""
    shared = arch.heads // arch.kv_heads
    if shared == 1:
        return x
    heads = ", ".join(f"[[{head // shared}]]" for head in range(arch.heads))
    index = block.nested(f"[[{heads}]]", (1, arch.heads, 1, 1), "si32")
    sizes = [block.cast(block.size(x, axis), "ui32") for axis in (0, 2, 3)]
    wide = block.broadcast_in(index, block.concat(0, *sizes), (0, 2, 3), x)
    return block.gather_along(x, wide, 1)


def _norm(arch: Architecture, kind: str) -> str:
    """input [1, T, hidden], scale [hidden]."""
    block = Block()
    x = Value("%arg0", (1, None, arch.hidden_size), kind)
    scale = Value("%arg1", (arch.hidden_size,), kind)
    wide = block.cast(x, "f32")
    mean = block.reduce_mean(block.binary("mul", wide, wide))
    inverse = block.unary("rsqrt", block.binary("add", mean, block.number(arch.norm_eps, "f32")))
    normed = block.cast(block.binary("mul", wide, inverse), kind)
    result = block.binary("mul", normed, scale)
    attributes = f"axes = -1 : si64, eps = {arch.norm_eps:e} : f32, version = 1 : si64"
    return _graph(block, NORM, {"input": x, "scale": scale}, result, "rms_norm", attributes)


def _graph(
    block: Block, name: str, inputs: dict[str, Value], result: Value, kind: str, attributes: str
) -> str:
    arguments = ", ".join(
        f'{value.name}: {value.type} {{coreai.name = "{one}"}}' for one, value in inputs.items()
    )
    named = ", ".join(f'"{one}"' for one in inputs)
    block.add(f"coreai.output {result.name} : {result.type}")
    body = "\n".join(block.lines)
    return (
        f"  coreai.graph private noinline @{name}({arguments}) -> ({result.type} "
        f'{{coreai.name = "output"}}) attributes {{__coreai_pure__, composite_decl = '
        f'#coreai.composite_declaration<"{kind}" = {{input_names = [{named}], '
        f'op_attrs = {{{attributes}}}, output_names = ["output"]}}>}} {{\n{body}\n  }}'
    )
