"""The graphs of a Phi decoder for Qualcomm's NPU, each for a fixed number of tokens.

What HTP lacks or computes wrongly is written out: attention and rotary positions (as a fused
operator, GroupQueryAttention on HTP compiles for Phi-4-mini's partial rotation and is wrong), the
sum before a norm. Keys and values of earlier tokens come in as they are kept, [1, G, P, d]; only
the new ones [1, G, S, d] go out, and a graph on the CPU puts them in their places.

S: tokens of a call, P: tokens of the cache, H: heads, G: heads of keys and values, d: their width.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from phibuild.backends.qnn.graph import FLOAT16, Graph
from phibuild.backends.qnn.layout import NORM, Part
from phibuild.backends.qnn.names import COS, LOGITS, MASK, NEWS, PASTS, SIN, hidden_name
from phibuild.backends.qnn.weights import Places, Stored
from phibuild.worker.architecture import Architecture

Norms = Mapping[str, NDArray[np.float16]]


def layers_graph(
    arch: Architecture, places: Places, norms: Norms, part: Part, tokens: int, context: int
) -> Graph:
    """Return the graph of a part's layers for `tokens` tokens."""
    graph = Graph(f"{part.name}-{tokens}")
    hidden = graph.input(hidden_name(part.first), FLOAT16, [1, tokens, arch.hidden_size])
    half = arch.rotary_dim // 2
    for name in (COS, SIN):
        graph.input(name, FLOAT16, [1, 1, tokens, half])
    repeats = arch.heads // arch.kv_heads
    graph.input(MASK, FLOAT16, [1, 1, repeats * tokens, context + tokens])
    for layer in part.layers:
        for past, new in zip(PASTS, NEWS, strict=True):
            shape = [1, arch.kv_heads, context, arch.head_dim]
            graph.input(past % layer, FLOAT16, shape)
            shape[2] = tokens
            graph.output(new % layer, FLOAT16, shape)
        written = _Layer(graph, arch, places, norms, layer, tokens)
        hidden = written.add(hidden, hidden_name(layer + 1))
    graph.output(hidden, FLOAT16, [1, tokens, arch.hidden_size])
    return graph


def head_graph(arch: Architecture, places: Places, norms: Norms, tokens: int) -> Graph:
    """Return the graph of the last norm and the scores of `tokens` tokens."""
    graph = Graph(f"head-{tokens}")
    hidden = graph.input(hidden_name(arch.layers), FLOAT16, [1, tokens, arch.hidden_size])
    normed = graph.norm(hidden, norms[NORM], arch.norm_eps, "norm")
    graph.product(normed, places.head, LOGITS, 0, arch.vocab_size)
    graph.output(LOGITS, FLOAT16, [1, tokens, arch.vocab_size])
    return graph


class _Layer:
    """One layer of a graph."""

    def __init__(
        self,
        graph: Graph,
        arch: Architecture,
        places: Places,
        norms: Norms,
        layer: int,
        tokens: int,
    ) -> None:
        self._graph, self._arch, self._layer = graph, arch, layer
        self._tokens = tokens
        self._source = f"model.layers.{layer}."
        self._places, self._norms = places, norms

    def add(self, hidden: str, output: str) -> str:
        """Add the layer: its attention and its MLP, each added to what came in."""
        graph = self._graph
        attended = self._attention(self._norm(hidden, "input_layernorm"))
        summed = graph.add("Add", [hidden, attended], self._name("attn.sum"))
        made = self._mlp(self._norm(summed, "post_attention_layernorm"))
        return graph.add("Add", [summed, made], output)

    def _name(self, name: str) -> str:
        return f"layers.{self._layer}.{name}"

    def _norm(self, hidden: str, name: str) -> str:
        weight = self._norms[f"{self._source}{name}.weight"]
        return self._graph.norm(hidden, weight, self._arch.norm_eps, self._name(name))

    def _matrix(self, name: str) -> Stored:
        return self._places.matrices[f"{self._source}{name}.weight"]

    def _product(self, inputs: str, matrix: str, name: str) -> str:
        stored = self._matrix(matrix)
        return self._graph.product(inputs, stored, self._name(name), 0, stored.shape[0])

    def _mlp(self, hidden: str) -> str:
        graph, both = self._graph, self._matrix("mlp.gate_up_proj")
        inner = self._arch.intermediate_size
        gate = graph.product(hidden, both, self._name("mlp.gate_proj"), 0, inner)
        up = graph.product(hidden, both, self._name("mlp.up_proj"), inner, inner)
        open_ = graph.add("Sigmoid", [gate], self._name("mlp.sigmoid"))
        gate = graph.add("Mul", [gate, open_], self._name("mlp.act"))
        inside = graph.add("Mul", [gate, up], self._name("mlp.mul"))
        return self._product(inside, "mlp.down_proj", "mlp.down_proj")

    def _attention(self, hidden: str) -> str:
        graph, arch, name = self._graph, self._arch, self._name
        heads, groups, width = arch.heads, arch.kv_heads, arch.head_dim
        tokens, repeats = self._tokens, heads // groups
        joined = self._product(hidden, "self_attn.qkv_proj", "attn.qkv_proj")
        sizes = graph.constant("qkv_widths", [heads * width, groups * width, groups * width])
        graph.add_several("Split", [joined, sizes], [name("q"), name("k"), name("v")], axis=-1)
        query = self._rotated(self._heads("q", heads), name("q.rotated"))
        keys = self._rotated(self._heads("k", groups), NEWS[0] % self._layer)
        values = self._heads("v", groups, NEWS[1] % self._layer)
        if repeats > 1:
            # Queries of the heads that share keys are rows of one product: keys are not copied.
            shape = graph.constant("grouped", [1, groups, repeats * tokens, width])
            query = graph.add("Reshape", [query, shape], name("q.grouped"))
        past_keys, past_values = (past % self._layer for past in PASTS)
        keys = graph.add("Concat", [past_keys, keys], name("keys"), axis=2)
        values = graph.add("Concat", [past_values, values], name("values"), axis=2)
        turned = graph.add("Transpose", [keys], name("keys.turned"), perm=[0, 1, 3, 2])
        scale = graph.constant("scale", np.float16(width**-0.5))
        # Before the product: scores of fp16 stay small.
        query = graph.add("Mul", [query, scale], name("q.scaled"))
        scores = graph.add("MatMul", [query, turned], name("scores"))
        scores = graph.add("Add", [scores, MASK], name("scores.masked"))
        shares = graph.add("Softmax", [scores], name("shares"), axis=-1)
        mixed = graph.add("MatMul", [shares, values], name("mixed"))
        if repeats > 1:
            shape = graph.constant("ungrouped", [1, heads, tokens, width])
            mixed = graph.add("Reshape", [mixed, shape], name("mixed.heads"))
        mixed = graph.add("Transpose", [mixed], name("mixed.turned"), perm=[0, 2, 1, 3])
        shape = graph.constant("flat", [1, tokens, heads * width])
        mixed = graph.add("Reshape", [mixed, shape], name("mixed.flat"))
        return self._product(mixed, "self_attn.o_proj", "attn.o_proj")

    def _heads(self, name: str, count: int, output: str | None = None) -> str:
        """Return [1, count, S, d] of [1, S, count * d]."""
        graph, full = self._graph, self._name(name)
        tokens, width = self._tokens, self._arch.head_dim
        # Turned in three dimensions: in four, the compiler lays out the weights before it anew for
        # each graph where heads are not whole tiles wide (96), and a binary has them twice.
        parted = graph.constant(f"parted.{count}", [tokens, count, width])
        turned = graph.add("Reshape", [full, parted], f"{full}.parted")
        turned = graph.add("Transpose", [turned], f"{full}.turned", perm=[1, 0, 2])
        shape = graph.constant(f"heads.{count}", [1, count, tokens, width])
        return graph.add("Reshape", [turned, shape], output or f"{full}.heads")

    def _rotated(self, heads: str, output: str) -> str:
        """Rotate the first `rotary_dim` elements of heads, halves against each other: as
        Transformers' apply_rotary_pos_emb, without its concatenation of negated halves."""
        graph, arch, name = self._graph, self._arch, f"{heads}.rotary"
        half, rest = arch.rotary_dim // 2, arch.head_dim - arch.rotary_dim
        sizes = [half, half, *([rest] if rest else [])]
        pieces = [f"{name}.{number}" for number in range(len(sizes))]
        graph.add_several("Split", [heads, graph.constant("rotary_widths", sizes)], pieces, axis=-1)
        first, second, *kept = pieces
        products = {
            (piece, table): graph.add("Mul", [piece, table], f"{piece}.{table}")
            for piece in (first, second)
            for table in (COS, SIN)
        }
        left = [products[first, COS], products[second, SIN]]
        right = [products[second, COS], products[first, SIN]]
        turned = [
            graph.add("Sub", left, f"{name}.left"),
            graph.add("Add", right, f"{name}.right"),
        ]
        return graph.add("Concat", [*turned, *kept], output, axis=-1)
