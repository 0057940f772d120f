"""Phi3ForCausalLM as graphs of a LiteRT model, written down instead of traced.

Operator for operator what litert-torch exports from Transformers' model, but for reshapes of no
account: LiteRT's delegates look for these. The names of signatures, inputs and outputs are the
exported ones as well: LiteRT-LM goes by them. A cache is an input and an output of each graph; a
runtime that gives the same memory for both has it updated in place.
"""

from __future__ import annotations

from functools import partial
from typing import Protocol

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from phibuild.backends.litert.layout import PREFILL_TOKENS
from phibuild.backends.litert.model import Graph, Model
from phibuild.worker.architecture import Architecture
from phibuild.worker.rotary import short_frequencies

PREFILL, DECODE = f"prefill_{PREFILL_TOKENS}", "decode"
"""The signatures: of a chunk of the prompt, which has no logits, and of one token."""
SCORES = "scores"
EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"


class Weights(Protocol):
    """A variant's weights."""

    def matrix(self, graph: Graph, name: str) -> int:
        """Return a matrix [out, in] in a graph, for FULLY_CONNECTED or EMBEDDING_LOOKUP."""

    def vector(self, graph: Graph, name: str) -> int:
        """Return a norm's weights as [1, 1, width], fp32."""


def add_graphs(model: Model, arch: Architecture, weights: Weights, context: int) -> None:
    """Add both signatures to a model, whose caches hold `context` tokens.

    Inputs: tokens [1, T] and input_pos [T], int32; mask [1, 1, T, context], fp32, which is added to
    the scores; kv_cache_k_N [1, kv_heads, context, head_dim] and kv_cache_v_N [1, kv_heads,
    head_dim, context]. Outputs: the caches, and logits [1, 1, vocabulary] of `decode`.
    """
    for name, tokens in ((PREFILL, PREFILL_TOKENS), (DECODE, 1)):
        _Decoder(model.graph(name), arch, weights, tokens, context).write(name == DECODE)


def add_scores(model: Model, arch: Architecture, weights: Weights, context: int) -> None:
    """Add a signature for judges: the prefill's, with the logits of its tokens,
    [1, T, vocabulary]."""
    _Decoder(model.graph(SCORES), arch, weights, PREFILL_TOKENS, context).write(True)


class _Decoder:
    def __init__(
        self, graph: Graph, arch: Architecture, weights: Weights, tokens: int, context: int
    ) -> None:
        self._graph, self._arch, self._weights = graph, arch, weights
        self._tokens, self._context = tokens, context
        self._ids = graph.input("tokens", (1, tokens), "INT32")
        self._positions = graph.input("input_pos", (tokens,), "INT32")
        self._mask = graph.input("mask", (1, 1, tokens, context))
        heads, width = arch.kv_heads, arch.head_dim
        self._caches = [
            (
                graph.input(f"kv_cache_k_{layer}", (1, heads, context, width)),
                graph.input(f"kv_cache_v_{layer}", (1, heads, width, context)),
            )
            for layer in range(arch.layers)
        ]

    def write(self, with_logits: bool) -> None:
        """Add all operators. Without logits the last layer ends at its cache."""
        arch, graph = self._arch, self._graph
        hidden = self._embedded()
        self._cos, self._sin = self._tables()
        self._place = self._start()
        for layer in range(arch.layers):
            prefix = f"model.layers.{layer}."
            x = self._norm(hidden, prefix + "input_layernorm.weight")
            qkv = self._linear(x, prefix + "self_attn.qkv_proj.weight")
            keys, values = self._cached(qkv, layer)
            if layer == arch.layers - 1 and not with_logits:
                return
            attended = self._attention(qkv, keys, values)
            hidden = self._add(hidden, self._linear(attended, prefix + "self_attn.o_proj.weight"))
            x = self._norm(hidden, prefix + "post_attention_layernorm.weight")
            hidden = self._add(hidden, self._mlp(x, prefix))
        head = EMBEDDING if arch.tied else HEAD
        graph.output("logits", self._linear(self._norm(hidden, NORM), head))

    def _embedded(self) -> int:
        width, flat = self._arch.hidden_size, self._reshape(self._ids, (self._tokens,), "INT32")
        table = self._weights.matrix(self._graph, EMBEDDING)
        rows = self._graph.apply("EMBEDDING_LOOKUP", (flat, table), (self._tokens, width))
        return self._reshape(rows, (1, self._tokens, width))

    def _tables(self) -> tuple[int, int]:
        """Return cosines and sines of the positions, [1, T, rotary_dim]."""
        graph, half = self._graph, self._arch.rotary_dim // 2
        column = self._reshape(self._positions, (1, self._tokens, 1), "INT32")
        column = graph.apply("CAST", (column,), (1, self._tokens, 1))
        frequencies = graph.constant(short_frequencies(self._arch).reshape(1, 1, half))
        angles = self._multiply(column, frequencies, (1, self._tokens, half))
        angles = self._join((angles, angles), 2)
        shape, scale = graph.shape(angles), self._arch.attention_factor
        tables = []
        for operator in ("COS", "SIN"):
            table = graph.apply(operator, (angles,), shape)
            if scale != 1.0:
                table = self._multiply(table, self._number(scale), shape)
            tables.append(table)
        return tables[0], tables[1]

    def _start(self) -> tuple[int, int]:
        """Return where the tokens go in the caches of keys and of values, int32 [4] each."""
        graph = self._graph
        first = self._slice(self._positions, (0,), (1,), "INT32")
        first = self._reshape(first, (), "INT32")
        zero = graph.constant(np.zeros((), np.int32))
        pack = partial(graph.apply, "PACK", shape=(4,), kind="INT32")
        options = schema.PackOptionsT(valuesCount=4, axis=0)
        keys = pack((zero, zero, first, zero), options=options)
        return keys, pack((zero, zero, zero, first), options=options)

    def _cached(self, qkv: int, layer: int) -> tuple[int, int]:
        """Return the caches [1, kv_heads, context, head_dim] (keys) and [1, kv_heads, head_dim,
        context] with those of the tokens in them."""
        arch = self._arch
        count, width, before = arch.kv_heads, arch.head_dim, arch.heads * arch.head_dim
        part = (1, self._tokens, count * width)
        keys = self._rotate(self._heads(self._slice(qkv, (0, 0, before), part), count))
        values = self._slice(qkv, (0, 0, before + count * width), part)
        if self._tokens == 1:
            values = self._reshape(values, (1, count, width, 1))
        else:
            values = self._reshape(values, (1, self._tokens, count, width))
            values = self._transpose(values, (0, 2, 3, 1))
        updated = []
        for name, cache, new, place in zip(
            ("k", "v"), self._caches[layer], (keys, values), self._place, strict=True
        ):
            shape = self._graph.shape(cache)
            updated.append(self._graph.apply("DYNAMIC_UPDATE_SLICE", (cache, new, place), shape))
            self._graph.output(f"kv_cache_{name}_{layer}", updated[-1])
        return updated[0], updated[1]

    def _attention(self, qkv: int, keys: int, values: int) -> int:
        """Return what the heads make of the cache, [1, T, heads * head_dim]. Heads that share keys
        are rows of one product, each with the mask of its token."""
        arch, tokens, graph = self._arch, self._tokens, self._graph
        width, shared = arch.head_dim, arch.heads // arch.kv_heads
        part = self._slice(qkv, (0, 0, 0), (1, tokens, arch.heads * width))
        queries = self._rotate(self._heads(part, arch.heads))
        scale = self._number(width**-0.5)
        queries = self._multiply(queries, scale, graph.shape(queries))
        rows, mask = shared * tokens, self._mask
        if shared > 1:
            queries = self._reshape(queries, (1, arch.kv_heads, rows, width))
            mask = self._join((mask,) * shared, 2)
        product = partial(
            graph.apply, "BATCH_MATMUL", options=schema.BatchMatMulOptionsT(adjY=True)
        )
        scores = product((queries, keys), (1, arch.kv_heads, rows, self._context))
        scores = self._add(scores, mask)
        options = schema.SoftmaxOptionsT(beta=1.0)
        scores = graph.apply("SOFTMAX", (scores,), graph.shape(scores), options)
        mixed = product((scores, values), (1, arch.kv_heads, rows, width))
        if tokens > 1:
            if shared > 1:
                mixed = self._reshape(mixed, (1, arch.heads, tokens, width))
            mixed = self._transpose(mixed, (0, 2, 1, 3))
        return self._reshape(mixed, (1, tokens, arch.heads * width))

    def _heads(self, x: int, count: int) -> int:
        """Return [1, T, count * head_dim] as [1, count, T, head_dim]."""
        width = self._arch.head_dim
        if self._tokens == 1:
            return self._reshape(x, (1, count, 1, width))
        return self._transpose(self._reshape(x, (1, self._tokens, count, width)), (0, 2, 1, 3))

    def _rotate(self, heads: int) -> int:
        """Return heads [1, count, T, head_dim] with their first `rotary_dim` elements rotated."""
        rotary, width = self._arch.rotary_dim, self._arch.head_dim
        one, count, tokens, _ = self._graph.shape(heads)

        def part(x: int, first: int, size: int) -> int:
            return self._slice(x, (0, 0, 0, first), (one, count, tokens, size))

        turned = heads if rotary == width else part(heads, 0, rotary)
        shape, half = (one, count, tokens, rotary), rotary // 2
        low, high = part(turned, 0, half), part(turned, half, half)
        high = self._multiply(high, self._number(-1.0), self._graph.shape(high))
        straight = self._multiply(turned, self._cos, shape)
        crossed = self._multiply(self._join((high, low), 3), self._sin, shape)
        rotated = self._add(straight, crossed)
        if rotary == width:
            return rotated
        return self._join((rotated, part(heads, rotary, width - rotary)), 3)

    def _mlp(self, x: int, prefix: str) -> int:
        inner = self._arch.intermediate_size
        both = self._linear(x, prefix + "mlp.gate_up_proj.weight")
        part = (1, self._tokens, inner)
        gate, up = self._slice(both, (0, 0, 0), part), self._slice(both, (0, 0, inner), part)
        sigmoid = self._graph.apply("LOGISTIC", (gate,), part)
        gated = self._multiply(up, self._multiply(gate, sigmoid, part), part)
        return self._linear(gated, prefix + "mlp.down_proj.weight")

    def _norm(self, x: int, name: str) -> int:
        """Return x * rsqrt(mean(x^2) + eps) * weight."""
        shape = self._graph.shape(x)
        mean = (*shape[:-1], 1)
        squared = self._multiply(x, x, shape)
        options = schema.ReducerOptionsT(keepDims=True)
        variance = self._graph.apply("MEAN", (squared, self._graph.ints(2)), mean, options)
        variance = self._add(variance, self._number(self._arch.norm_eps))
        scaled = self._multiply(x, self._graph.apply("RSQRT", (variance,), mean), shape)
        return self._multiply(scaled, self._weights.vector(self._graph, name), shape)

    def _linear(self, x: int, name: str) -> int:
        weight = self._weights.matrix(self._graph, name)
        shape = (*self._graph.shape(x)[:-1], self._graph.shape(weight)[0])
        options = schema.FullyConnectedOptionsT(keepNumDims=True)
        return self._graph.apply("FULLY_CONNECTED", (x, weight, -1), shape, options)

    def _add(self, x: int, y: int) -> int:
        return self._graph.apply("ADD", (x, y), self._graph.shape(x), schema.AddOptionsT())

    def _multiply(self, x: int, y: int, shape: tuple[int, ...]) -> int:
        return self._graph.apply("MUL", (x, y), shape, schema.MulOptionsT())

    def _number(self, value: float) -> int:
        return self._graph.constant(np.asarray(value, np.float32))

    def _reshape(self, x: int, shape: tuple[int, ...], kind: str = "FLOAT32") -> int:
        return self._graph.apply("RESHAPE", (x, self._graph.ints(*shape)), shape, kind=kind)

    def _transpose(self, x: int, order: tuple[int, ...]) -> int:
        shape = self._graph.shape(x)
        turned = tuple(shape[axis] for axis in order)
        return self._graph.apply("TRANSPOSE", (x, self._graph.ints(*order)), turned)

    def _slice(
        self, x: int, first: tuple[int, ...], size: tuple[int, ...], kind: str = "FLOAT32"
    ) -> int:
        inputs = (x, self._graph.ints(*first), self._graph.ints(*size))
        return self._graph.apply("SLICE", inputs, size, kind=kind)

    def _join(self, parts: tuple[int, ...], axis: int) -> int:
        shape = list(self._graph.shape(parts[0]))
        shape[axis] = sum(self._graph.shape(part)[axis] for part in parts)
        options = schema.ConcatenationOptionsT(axis=axis)
        return self._graph.apply("CONCATENATION", parts, shape, options)
