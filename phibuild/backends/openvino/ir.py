"""Phi3ForCausalLM as a stateful OpenVINO model, written down instead of traced.

The graph is, node for node, what optimum-intel 2.2 exports from Transformers 5.5 (a test in the
slow set compares them), because runtimes look for its patterns: RMSNorm, RoPE, stateful
attention, paged attention, the NPU's static shapes. The names of inputs, outputs, states and
linear layers are the exported ones as well: openvino-genai and its LoRA adapters go by them.
"""

from __future__ import annotations

import math

import numpy as np
import openvino as ov
from openvino.op.util import Variable, VariableInfo

from phibuild.backends.openvino.mask import Lengths, attention_mask, lengths
from phibuild.backends.openvino.nodes import (
    LAST,
    Output,
    f32,
    gather,
    i32,
    i64,
    named,
    opset,
    slice_,
    swish,
)
from phibuild.backends.openvino.rope import RotaryTables, rotary_tables, rotate
from phibuild.backends.openvino.weights import Weights
from phibuild.worker.architecture import Architecture


def build_model(arch: Architecture, weights: Weights) -> ov.Model:
    """Return the model with inputs input_ids, attention_mask, position_ids (i64, [batch, tokens],
    the mask [batch, past + tokens]) and beam_idx (i32, [batch]), and output logits
    (f32, [batch, tokens, vocabulary]). The KV cache is its state.

    The constants point into `weights`, which must outlive the model.
    """
    return _Decoder(arch, weights).model()


class _Decoder:
    def __init__(self, arch: Architecture, weights: Weights) -> None:
        self._arch = arch
        self._weights = weights
        self._input_ids = _parameter("input_ids", [-1, -1], np.int64)
        self._mask = _parameter("attention_mask", [-1, -1], np.int64)
        self._position_ids = _parameter("position_ids", [-1, -1], np.int64)
        self._beam_idx = _parameter("beam_idx", [-1], np.int32)
        self._batch = gather(opset.shape_of(self._input_ids), i64([0]))
        self._half_lengths: Output = None

    def model(self) -> ov.Model:
        embedding = self._weights.matrix(
            "model.embed_tokens.weight", "__module.model.embed_tokens/ov_ext::embedding/Convert"
        )
        ids = opset.convert(self._input_ids, "i32")
        hidden = opset.gather(embedding, ids, i32(0))
        tables = rotary_tables(self._position_ids, self._arch)
        attention = _Attention(self._arch, self._weights, self._beam_idx, self._batch, tables)
        for layer in range(self._arch.layers):
            hidden = self._layer(hidden, layer, attention)
        hidden = self._norm(hidden, "model.norm")
        logits = (
            _linear(hidden, embedding, "lm_head")
            if self._arch.tied
            else self._projection(hidden, "lm_head")
        )
        logits.output(0).get_tensor().set_names({"logits"})
        return ov.Model(
            [opset.result(logits)],
            attention.sinks,
            [self._input_ids, self._mask, self._position_ids, self._beam_idx],
            "phi3",
        )

    def _layer(self, hidden: Output, layer: int, attention: _Attention) -> Output:
        prefix = f"model.layers.{layer}."
        normed = self._norm(hidden, prefix + "input_layernorm")
        qkv = self._projection(normed, prefix + "self_attn.qkv_proj")
        mixed = attention(layer, normed, qkv, self._mask)
        hidden = opset.add(hidden, self._projection(mixed, prefix + "self_attn.o_proj"))
        normed = self._norm(hidden, prefix + "post_attention_layernorm")
        both = self._projection(normed, prefix + "mlp.gate_up_proj")
        gate, up = self._halves(both)
        product = opset.multiply(up, swish(gate))
        return opset.add(hidden, self._projection(product, prefix + "mlp.down_proj"))

    def _halves(self, both: Output) -> tuple[Output, Output]:
        """Return the halves of the last axis, by nodes that `tensor.chunk(2)` is traced to; the
        lengths are worked out once, for all layers."""
        if self._half_lengths is None:
            width = opset.gather(opset.shape_of(both, output_type="i32"), i64(-1), i32([0]))
            rest = opset.greater(opset.mod(width, i32(2)), i32([0]))
            half = opset.add(opset.divide(width, i32(2)), opset.convert(rest, "i32"))
            self._half_lengths = opset.concat([half, i32([-1])], 0)
        split = opset.variadic_split(both, i64(-1), self._half_lengths)
        return split.output(0), split.output(1)

    def _norm(self, x: Output, name: str) -> Output:
        """Return RMSNorm: weight * (x / sqrt(mean(x^2) + eps)), as nodes that plugins fuse."""

        def scalar(value: float) -> Output:
            return f32(np.full((1, 1, 1), value))

        mean = opset.reduce_mean(opset.power(x, scalar(2.0)), i64([-1]), True)
        root = opset.sqrt(opset.add(mean, scalar(self._arch.norm_eps)))
        normed = opset.multiply(x, opset.divide(scalar(1.0), root))
        return opset.multiply(self._weights.vector(name + ".weight"), normed)

    def _projection(self, x: Output, name: str) -> Output:
        return _linear(
            x,
            self._weights.matrix(name + ".weight", f"__module.{name}/ov_ext::linear/Convert"),
            name,
        )


class _Attention:
    """Attention of all layers: they share positions, mask and lengths, which come from layer 0."""

    def __init__(
        self,
        arch: Architecture,
        weights: Weights,
        beam_idx: Output,
        batch: Output,
        tables: RotaryTables,
    ) -> None:
        self.sinks: list[Output] = []
        self._arch = arch
        self._beam_idx = beam_idx
        self._batch = batch
        self._tables = tables
        self._sizes: Lengths | None = None
        self._added: Output = None
        self._repeated_shape: Output = None

    def __call__(self, layer: int, hidden: Output, qkv: Output, mask: Output) -> Output:
        """Return the mixed values [batch, tokens, heads * head_dim] of the normed `hidden` and
        its projection `qkv`."""
        arch = self._arch
        query_end = arch.heads * arch.head_dim
        key_end = query_end + arch.kv_heads * arch.head_dim
        query = rotate(self._heads(slice_(qkv, 0, query_end, 2), arch.heads), self._tables, arch)
        key = rotate(
            self._heads(slice_(qkv, query_end, key_end, 2), arch.kv_heads), self._tables, arch
        )
        value = self._heads(slice_(qkv, key_end, LAST, 2), arch.kv_heads)
        past_key, key_variable = self._cached(layer, "key")
        past_value, value_variable = self._cached(layer, "value")
        key = opset.concat([past_key, key], -2)
        value = opset.concat([past_value, value], -2)
        self.sinks += [opset.assign(key, key_variable), opset.assign(value, value_variable)]
        if self._sizes is None:
            self._sizes = lengths(hidden, past_key)
            self._added = attention_mask(mask, self._sizes, arch.sliding_window)
        if arch.kv_heads != arch.heads:
            key, value = self._repeated(key, value, self._sizes)
        mixed = opset.scaled_dot_product_attention(
            query, key, value, self._added, f32(1.0 / math.sqrt(arch.head_dim)), causal=False
        )
        mixed = opset.transpose(mixed, i32([0, 2, 1, 3]))
        return opset.reshape(mixed, i64([0, 0, arch.heads * arch.head_dim]), True)

    def _heads(self, x: Output, count: int) -> Output:
        x = opset.reshape(x, i64([0, 0, count, self._arch.head_dim]), True)
        return opset.transpose(x, i32([0, 2, 1, 3]))

    def _cached(self, layer: int, kind: str) -> tuple[Output, Variable]:
        """Return the cached keys or values of a layer, reordered by beam_idx, and their state."""
        arch = self._arch
        name = f"past_key_values.{layer}.{kind}"
        info = VariableInfo()
        info.data_shape = ov.PartialShape([-1, arch.kv_heads, -1, arch.head_dim])
        info.data_type = ov.Type.f32
        info.variable_id = f"{name}present.{layer}.{kind}"
        variable = Variable(info)
        shape = opset.concat([self._batch, i64([arch.kv_heads]), i64([0]), i64([arch.head_dim])], 0)
        empty = opset.broadcast(f32(0.0), shape)
        cached = opset.read_value(empty, variable)
        cached.output(0).get_tensor().set_names({name})
        return gather(cached, self._beam_idx), variable

    def _repeated(self, key: Output, value: Output, sizes: Lengths) -> tuple[Output, Output]:
        """Return keys and values repeated for each query head of their group."""
        arch = self._arch
        if self._repeated_shape is None:
            self._repeated_shape = opset.concat(
                [
                    gather(opset.shape_of(key), i64([0, 1])),
                    i64([arch.heads // arch.kv_heads]),
                    sizes.total_vector,
                    i64([arch.head_dim]),
                ],
                0,
            )

        def repeat(x: Output) -> Output:
            x = opset.broadcast(
                opset.unsqueeze(x, i64(2)), self._repeated_shape, broadcast_spec="BIDIRECTIONAL"
            )
            return opset.reshape(x, i64([0, arch.heads, -1, arch.head_dim]), True)

        return repeat(key), repeat(value)


def _parameter(name: str, shape: list[int], dtype: type[np.integer]) -> Output:
    parameter = named(opset.parameter(shape, dtype), name)
    parameter.output(0).get_tensor().set_names({name})
    return parameter


def _linear(x: Output, weight: Output, name: str) -> Output:
    return named(opset.matmul(x, weight, False, True), f"__module.{name}/ov_ext::linear/MatMul")
