"""Phi3ForCausalLM as a Core AI module in MLIR text, as Apple's coreai-models exports it.

The one function, main: input_ids [1, T] and position_ids [1, S], int32, S being all tokens so far,
to logits [1, T, vocabulary]. States: keyCache and valueCache [layers, 1, kv_heads, room, head_dim],
whose room the caller decides. Weights are named resources; what is fused in the checkpoint is apart
here where it is apart there (Apple's compiler narrows fused keys wrongly where heads share them).
"""

from __future__ import annotations

from collections.abc import Iterator

from phibuild.backends.coreai.composites import (
    ATTENTION,
    NORM,
    ROPE_KEYS,
    ROPE_QUERIES,
    composites,
)
from phibuild.backends.coreai.layout import EMBEDDING, HEAD, NUMBERS, encoding, float_kind
from phibuild.backends.coreai.mlir import MOST, Block, Value
from phibuild.worker.architecture import Architecture
from phibuild.worker.requests import Options

KEYS, VALUES = "keyCache", "valueCache"
"""The states, by the names that Apple's runner looks for."""


def parts(arch: Architecture, name: str, rows: int) -> dict[str, int]:
    """Return the matrices that a matrix of the checkpoint holds, with their rows."""
    prefix, _, fused = name.removesuffix(".weight").rpartition(".")
    if fused != "qkv_proj":
        return {name: rows}
    kv = arch.kv_heads * arch.head_dim
    own = {"q_proj": arch.heads * arch.head_dim, "k_proj": kv, "v_proj": kv}
    return {f"{prefix}.{part}.weight": count for part, count in own.items()}


def module(arch: Architecture, options: Options, frequencies: list[float]) -> str:
    """Return the module. frequencies: of the rotary embedding, [rotary_dim / 2]."""
    kind = NUMBERS[float_kind(options)]
    graphs = [*composites(arch, kind), _Main(arch, options, frequencies).text()]
    return "module {\n" + "\n".join(graphs) + "\n}\n"


class _Main:
    def __init__(self, arch: Architecture, options: Options, frequencies: list[float]) -> None:
        self._arch, self._options = arch, options
        self._kind, self._block = NUMBERS[float_kind(options)], Block()
        self._shapes = dict(arch.tensors())
        self._matrices: dict[str, Value] = {}
        self._ids = Value("%arg0", (1, None), "si32")
        self._positions = Value("%arg1", (1, None), "si32")
        text = ", ".join(f"{value:.9e}" for value in frequencies)
        self._frequencies = self._block.nested(f"[{text}]", (len(frequencies),), "f32")
        self._cache = Value("", (arch.layers, 1, arch.kv_heads, None, arch.head_dim), self._kind)

    def text(self) -> str:
        arch, block = self._arch, self._block
        tokens, self._end = block.size(self._ids, 1), block.size(self._positions, 1)
        self._start = block.binary("sub", self._end, tokens)
        self._tokens = tokens
        zero, most = block.integers([0]), block.integers([MOST])
        first = block.concat(0, zero, self._start)
        self._new = block.slice(self._positions, first, block.concat(0, most, self._end), (1, None))
        self._open()
        x = block.gather_rows(self._matrix(EMBEDDING), self._ids)
        for layer in range(arch.layers):
            prefix = f"model.layers.{layer}."
            attended = self._attend(self._norm(x, prefix + "input_layernorm.weight"), layer)
            x = self._add(x, self._linear(attended, prefix + "self_attn.o_proj.weight"))
            normed = self._norm(x, prefix + "post_attention_layernorm.weight")
            gate, up = block.halves(self._linear(normed, prefix + "mlp.gate_up_proj.weight"))
            gated = block.binary("mul", block.unary("silu", gate), up)
            x = self._add(x, self._linear(gated, prefix + "mlp.down_proj.weight"))
        head = EMBEDDING if arch.tied else HEAD
        return self._graph(self._linear(self._norm(x, "model.norm.weight"), head))

    def _matrix(self, name: str) -> Value:
        """Return a matrix, or a part of one, once."""
        if name not in self._matrices:
            self._matrices.update(self._read(name))
        return self._matrices[name]

    def _read(self, name: str) -> Iterator[tuple[str, Value]]:
        fused = name
        for part in "qkv":
            fused = fused.replace(f".{part}_proj.", ".qkv_proj.")
        shape = self._shapes[fused]
        how = encoding(fused, shape, self._options)
        for part, rows in parts(self._arch, fused, shape[0]).items():
            yield part, self._block.weight(part, (rows, shape[1]), how, self._kind)

    def _linear(self, x: Value, name: str) -> Value:
        return self._block.matmul(x, self._block.transpose(self._matrix(name), (1, 0)))

    def _norm(self, x: Value, name: str) -> Value:
        scale = self._block.resource(name, (self._arch.hidden_size,), self._kind)
        return self._block.invoke(NORM, x, x, scale)

    def _add(self, x: Value, y: Value) -> Value:
        return self._block.binary("add", x, y)

    def _open(self) -> None:
        """Read the states, and work out where the new tokens go."""
        block, cache = self._block, self._cache
        block.add("%token = coreai.create_token : !coreai.token")
        self._states: dict[str, tuple[str, Value]] = {}
        for name in (KEYS, VALUES):
            self._states[name] = self._read_state(name, "%token")
        zero = block.integers([0])
        kv, width = block.integers([cache.shape[2] or 0]), block.integers([cache.shape[4] or 0])
        one = block.integers([1])
        # of layer 0: for others the first number is another
        self._from = [zero, zero, self._start, zero]
        self._to = [one, kv, self._end, width]

    def _read_state(self, name: str, token: str) -> tuple[str, Value]:
        block, handle = self._block, {KEYS: "%arg2", VALUES: "%arg3"}[name]
        value = Value(block.new_name(), self._cache.shape, self._kind)
        read = block.new_name()
        block.add(
            f"{value.name}, {read} = coreai.read_handle {handle}, {token} : "
            f"(<{value.type}>, !coreai.token) -> ({value.type}, !coreai.token)"
        )
        return read, value

    def _updated(self, name: str, layer: int, new: Value) -> Value:
        """Put the heads of new tokens into a state, and return all heads of a layer so far."""
        block = self._block
        token, whole = self._states[name]
        first = block.concat(0, block.integers([layer]), *self._from)
        end = block.concat(0, block.integers([layer + 1]), *self._to)
        step, update = block.integers([1] * 5), block.expand(new, 0)
        changed = Value(block.new_name(), whole.shape, whole.kind)
        block.add(
            f"{changed.name} = coreai.slice_update {whole.name} with {update.name} at "
            f"({first.name}, {end.name}, {step.name}) : ({whole.type}, {update.type}, "
            f"{first.type}, {end.type}, {step.type}) to {changed.type}"
        )
        handle, written = {KEYS: "%arg2", VALUES: "%arg3"}[name], block.new_name()
        block.add(
            f"{written} = coreai.write_handle {handle}, {changed.name}, {token} : "
            f"(<{changed.type}>, {changed.type}, !coreai.token) -> !coreai.token"
        )
        self._states[name] = self._read_state(name, written)
        _, whole = self._states[name]
        _, batch, heads, _, width = whole.shape
        one = block.slice(
            whole,
            block.integers([layer, 0, 0, 0, 0]),
            block.concat(0, block.integers([layer + 1, MOST, MOST]), self._end,
                         block.integers([MOST])),
            (1, batch, heads, None, width),
        )  # fmt: skip
        return block.shrink(one)

    def _attend(self, x: Value, layer: int) -> Value:
        arch, block = self._arch, self._block
        prefix = f"model.layers.{layer}.self_attn."
        query, key, value = (
            self._heads(self._linear(x, f"{prefix}{part}_proj.weight"), count)
            for part, count in (("q", arch.heads), ("k", arch.kv_heads), ("v", arch.kv_heads))
        )
        query, key = (
            block.invoke(graph, one, self._scaled(one), self._new, self._frequencies)
            for graph, one in ((ROPE_QUERIES, query), (ROPE_KEYS, key))
        )
        keys, values = self._updated(KEYS, layer, key), self._updated(VALUES, layer, value)
        attended = block.invoke(ATTENTION, query, query, keys, values)
        turned = block.transpose(attended, (0, 2, 1, 3))
        width = arch.heads * arch.head_dim
        sizes = block.concat(0, block.integers([1]), self._tokens, block.integers([width]))
        return block.reshape(turned, sizes, (1, None, width))

    def _heads(self, x: Value, count: int) -> Value:
        """Return [1, T, count * head_dim] as [1, count, T, head_dim]."""
        block, width = self._block, self._arch.head_dim
        last = block.integers([count, width])
        sizes = block.concat(0, block.integers([1]), self._tokens, last)
        return block.transpose(block.reshape(x, sizes, (1, None, count, width)), (0, 2, 1, 3))

    def _scaled(self, heads: Value) -> Value:
        """Return heads whose rotated elements have longrope's factor: cos and sin have none."""
        arch, block = self._arch, self._block
        if arch.attention_factor == 1.0:
            return heads
        factor = block.number(arch.attention_factor, self._kind)
        if arch.rotary_dim == arch.head_dim:
            return block.binary("mul", heads, factor)
        turned = block.part(heads, 3, 0, arch.rotary_dim)
        rest = block.part(heads, 3, arch.rotary_dim, arch.head_dim)
        return block.concat(3, block.binary("mul", turned, factor), rest)

    def _graph(self, logits: Value) -> str:
        block, cache = self._block, self._cache
        tokens = [self._states[name][0] for name in (KEYS, VALUES)]
        block.add(
            f"coreai.output {tokens[0]}, {tokens[1]}, {logits.name} : !coreai.token, "
            f"!coreai.token, {logits.type}"
        )
        states = ", ".join(
            f'{argument}: !coreai.handle<{cache.type}> {{MutableBuffers.buffer_mutation = "{name}"'
            f', coreai.name = "{name}"}}'
            for argument, name in (("%arg2", KEYS), ("%arg3", VALUES))
        )
        results = ", ".join(f'!coreai.token {{coreai.name = "{name}"}}' for name in (KEYS, VALUES))
        body = "\n".join(block.lines)
        return (
            f'  coreai.graph @main(%arg0: {self._ids.type} {{coreai.name = "input_ids"}}, '
            f'%arg1: {self._positions.type} {{coreai.name = "position_ids"}}, {states}) -> '
            f'({results}, {logits.type} {{coreai.name = "logits"}}) attributes '
            f"{{__coreai_pure__}} {{\n{body}\n  }}"
        )
