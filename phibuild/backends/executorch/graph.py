"""Phi3ForCausalLM between its attentions, as graphs that XNNPACK computes, written down instead of
traced: one for each layer, where ExecuTorch's own exporter cuts eleven.

Two things are written so that XNNPACK takes them at any number of tokens: the mean of squares is a
product with 1 / width, and half a head's rotation (rotate_half) a product with a matrix of 0, 1 and
-1, which is exact.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from phibuild.backends.executorch.layout import (
    PREFILL_TOKENS,
    factor_encoding,
    factors,
    head_name,
    stored_as,
)
from phibuild.backends.executorch.xnnpack import Graph, Weight
from phibuild.worker.architecture import Architecture
from phibuild.worker.requests import Options

MEAN, TURN = "mean", "rotate_half"
"""Names of what the graphs multiply by besides the checkpoint's weights."""
_PLAIN = stored_as("FLOAT32")


def parts(arch: Architecture, name: str, rows: int) -> dict[str, int]:
    """Return the matrices that a matrix of the checkpoint holds, with their rows: a product of
    XNNPACK has one output, so what is fused there is apart here."""
    prefix, _, fused = name.removesuffix(".weight").rpartition(".")
    if fused == "qkv_proj":
        kv = arch.kv_heads * arch.head_dim
        own = {"q_proj": arch.heads * arch.head_dim, "k_proj": kv, "v_proj": kv}
    elif fused == "gate_up_proj":
        own = dict.fromkeys(("gate_proj", "up_proj"), arch.intermediate_size)
    else:
        return {name: rows}
    return {f"{prefix}.{part}.weight": count for part, count in own.items()}


def small_factors(arch: Architecture) -> dict[str, NDArray[np.float32]]:
    """Return what the graphs multiply by besides the checkpoint's weights."""
    width, half = arch.hidden_size, arch.rotary_dim // 2
    turn = np.zeros((arch.head_dim, arch.head_dim), np.float32)
    low = np.arange(half)
    turn[low, low + half], turn[low + half, low] = -1, 1
    return {MEAN: np.full((1, width), 1 / width, np.float32), TURN: turn}


def graphs(arch: Architecture, options: Options) -> list[Graph]:
    """Return what XNNPACK computes, in its order: before the first attention, between two, after
    the last; the output layer of one token, and of all."""
    writer = _GraphWriter(arch, options)
    layers = [writer.layer(number) for number in range(arch.layers + 1)]
    return [*layers, writer.head(1), writer.head(PREFILL_TOKENS)]


class _GraphWriter:
    def __init__(self, arch: Architecture, options: Options) -> None:
        self._arch, self._options = arch, options
        self._hidden = (1, PREFILL_TOKENS, arch.hidden_size)
        self._weights = {
            part: Weight(part, (rows, shape[1]), factor_encoding(name, options))
            for name, shape in factors(arch)
            for part, rows in parts(arch, name, shape[0]).items()
        }

    def layer(self, number: int) -> Graph:
        """Return the graph before the attention of a layer. Inputs: hidden states; of all but the
        first, what the attention before it gives, and a norm; of all but the last, a norm, cos and
        sin; eps. Outputs: of all but the first, hidden states; of all but the last, queries, keys
        and values [1, T, heads, head_dim]."""
        arch, graph = self._arch, Graph()
        heads = (1, PREFILL_TOKENS, arch.heads, arch.head_dim)
        table = (PREFILL_TOKENS, 1, arch.head_dim)
        first, last = number == 0, number == arch.layers
        x = graph.input(*self._hidden)
        if not first:
            attended, after = graph.input(*heads), graph.input(arch.hidden_size)
        if not last:
            before, cos, sin = (
                graph.input(arch.hidden_size), graph.input(*table), graph.input(*table)
            )  # fmt: skip
        eps = graph.input(1)
        if not first:
            prefix = f"model.layers.{number - 1}."
            flat = graph.reshape(attended, self._hidden)
            mixed = self._linear(graph, flat, prefix + "self_attn.o_proj.weight")
            x = graph.binary("XNNAdd", x, mixed)
            inner = self._mlp(graph, self._norm(graph, x, after, eps), prefix)
            x = graph.binary("XNNAdd", x, inner, output=True)
        if not last:
            prefix = f"model.layers.{number}.self_attn."
            states = self._norm(graph, x, before, eps)
            for part, count in (("q", arch.heads), ("k", arch.kv_heads), ("v", arch.kv_heads)):
                y = self._linear(graph, states, f"{prefix}{part}_proj.weight")
                shape = (1, PREFILL_TOKENS, count, arch.head_dim)
                y = graph.reshape(y, shape, output=part == "v")
                if part != "v":
                    self._rotate(graph, y, cos, sin)
        return graph

    def head(self, tokens: int) -> Graph:
        """Return the graph of the output layer, of one token [1, hidden] or of all. Inputs: hidden
        states, a norm, eps."""
        graph, width = Graph(), self._arch.hidden_size
        x = graph.input(1, width) if tokens == 1 else graph.input(1, tokens, width)
        weight, eps = graph.input(self._arch.hidden_size), graph.input(1)
        name = head_name(self._arch)
        self._linear(graph, self._norm(graph, x, weight, eps), name, output=True)
        return graph

    def _linear(self, graph: Graph, x: int, name: str, *, output: bool = False) -> int:
        return graph.linear(x, self._weights[name], output=output)

    def _norm(self, graph: Graph, x: int, weight: int, eps: int) -> int:
        """Return x * rsqrt(mean(x^2) + eps) * weight."""
        squared = graph.binary("XNNMultiply", x, x)
        shape = (1, self._arch.hidden_size)
        mean = graph.linear(squared, Weight(MEAN, shape, _PLAIN))
        scale = graph.unary("XNNReciprocalSquareRoot", graph.binary("XNNAdd", mean, eps))
        return graph.binary("XNNMultiply", graph.binary("XNNMultiply", x, scale), weight)

    def _rotate(self, graph: Graph, heads: int, cos: int, sin: int) -> int:
        """Return heads with the elements that are rotated, rotated."""
        width = self._arch.head_dim
        turned = graph.linear(heads, Weight(TURN, (width, width), _PLAIN))
        straight = graph.binary("XNNMultiply", heads, cos)
        crossed = graph.binary("XNNMultiply", turned, sin)
        return graph.binary("XNNAdd", straight, crossed, output=True)

    def _mlp(self, graph: Graph, x: int, prefix: str) -> int:
        gate = self._linear(graph, x, prefix + "mlp.gate_proj.weight")
        up = self._linear(graph, x, prefix + "mlp.up_proj.weight")
        gate = graph.binary("XNNMultiply", gate, graph.unary("XNNSigmoid", gate))
        product = graph.binary("XNNMultiply", gate, up)
        return self._linear(graph, product, prefix + "mlp.down_proj.weight")
