"""Phi3ForCausalLM as a method of an ExecuTorch program: XNNPACK's graphs, and what is between them.

Attention and cache are the kernels that ExecuTorch's own exporter takes (`llama::custom_sdpa`,
`llama::update_cache`). The tensors between two graphs are the same for all layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from phibuild.backends.executorch.layout import EMBEDDING, PREFILL_TOKENS, embedding_encoding
from phibuild.backends.executorch.program import Method
from phibuild.worker.architecture import Architecture
from phibuild.worker.requests import Options
from phibuild.worker.rotary import short_frequencies

FORWARD, LOGITS = "forward", "logits"
"""The methods: what runners call, with the last token's logits; and with those of all tokens, to
measure by."""
EPS = "eps"
_COS, _SIN = "cos", "sin"
_FP32 = 6  # its number among scalar types
Constants = Mapping[str, int]
"""Numbers of tensors in the constant segment: the embedding, its scales, norms, eps, cos, sin."""


def rope_tables(arch: Architecture, context: int) -> dict[str, NDArray[np.float32]]:
    """Return cos and sin of each position [context, 1, head_dim], fp32 as Transformers computes
    them; where a head is not rotated they are 1 and 0."""
    angles = np.arange(context, dtype=np.float32)[:, None] * short_frequencies(arch)
    angles = np.concatenate((angles, angles), axis=1)
    scale, rest = np.float32(arch.attention_factor), arch.head_dim - arch.rotary_dim
    tables = {}
    for name, table, otherwise in ((_COS, np.cos(angles), 1.0), (_SIN, np.sin(angles), 0.0)):
        padded = np.pad(table * scale, ((0, 0), (0, rest)), constant_values=otherwise)
        tables[name] = padded.astype(np.float32)[:, None]
    return tables


def method(
    arch: Architecture, options: Options, name: str, constants: Constants, segments: Sequence[int]
) -> Method:
    """Return a method: tokens [1, T] and the position of the first, [1], both int64, to logits
    fp32, of the last token [1, vocabulary] (FORWARD) or of all [1, T, vocabulary] (LOGITS).

    constants: numbers of what kernels read. segments: those of
    phibuild.backends.executorch.graph.graphs.
    """
    return _MethodWriter(arch, options, name, constants).write(segments)


class _MethodWriter:
    def __init__(
        self, arch: Architecture, options: Options, name: str, constants: Constants
    ) -> None:
        self._arch, self._options, self._constants = arch, options, constants
        self._method = Method(name)
        self._ids = self._method.input("LONG", (1, PREFILL_TOKENS), dynamic=True)
        self._start = self._method.input("LONG", (1,))

    def write(self, segments: Sequence[int]) -> Method:
        arch, method = self._arch, self._method
        hidden = self._states(), self._states()
        self._embed(hidden[0])
        self._positions()
        heads = self._room(arch.heads), self._room(arch.kv_heads), self._room(arch.kv_heads)
        attended, eps = self._room(arch.heads), self._vector(EPS, 1)
        for number in range(arch.layers + 1):
            x, y = hidden[(number + 1) % 2], hidden[number % 2]
            arguments = (
                [y] if number == 0 else [x, attended, self._norm(number - 1, "post_attention")]
            )
            if number < arch.layers:
                arguments += [self._norm(number, "input"), self._cos, self._sin]
            arguments.append(eps)
            if number:
                arguments.append(y)
            if number < arch.layers:
                arguments += heads
            method.delegate(segments[number], *arguments)
            if number < arch.layers:
                self._attend(heads, attended)
        self._head(hidden[arch.layers % 2], eps, segments)
        return method

    def _states(self) -> int:
        shape = (1, PREFILL_TOKENS, self._arch.hidden_size)
        return self._method.room("FLOAT", shape, dynamic=True)

    def _room(self, heads: int) -> int:
        shape = (1, PREFILL_TOKENS, heads, self._arch.head_dim)
        return self._method.room("FLOAT", shape, dynamic=True)

    def _vector(self, name: str, size: int) -> int:
        return self._method.constant("FLOAT", (size,), self._constants[name])

    def _norm(self, layer: int, kind: str) -> int:
        name = f"model.layers.{layer}.{kind}_layernorm.weight"
        return self._vector(name, self._arch.hidden_size)

    def _number(self, value: int = 0) -> int:
        return self._method.value("Int", int_val=value)

    def _embed(self, hidden: int) -> None:
        method, shape = self._method, (self._arch.vocab_size, self._arch.hidden_size)
        how, number = embedding_encoding(self._options), self._constants[EMBEDDING]
        if how.is_integer:
            table = method.constant("CHAR", shape, number)
            scales = self._vector(scales_name(EMBEDDING), shape[0])
            none, limits = method.value("Null"), (self._number(-128), self._number(127))
            method.kernel(
                "quantized_decomposed::embedding_byte", "dtype_out",
                table, scales, none, *limits, self._ids, self._number(_FP32), hidden, hidden,
            )  # fmt: skip
            return
        kind = "FLOAT" if how.kind == "FLOAT32" else "HALF"
        rows = hidden
        if kind == "HALF":
            rows = method.room(kind, (1, PREFILL_TOKENS, shape[1]), dynamic=True)
        table, no = method.constant(kind, shape, number), method.value("Bool", bool_val=False)
        method.kernel(
            "aten::embedding", "out", table, self._ids, self._number(-1), no, no, rows, rows
        )
        if rows != hidden:
            none = method.value("Null")
            method.kernel(
                "dim_order_ops::_to_dim_order_copy", "out", rows, no, none, hidden, hidden
            )

    def _positions(self) -> None:
        """Read the position of the first token, and cut the tokens' rows of cos and sin."""
        method, context, width = self._method, self._options["context"], self._arch.head_dim
        zero, one = self._number(0), self._number(1)
        self._first, tokens, end = self._number(), self._number(), self._number()
        method.kernel("aten::_local_scalar_dense", "", self._start, self._first)
        method.kernel("aten::sym_size", "int", self._ids, one, tokens)
        method.kernel("executorch_prim::add", "Scalar", self._first, tokens, end)
        tables = []
        for name in (_COS, _SIN):
            table = method.constant("FLOAT", (context, 1, width), self._constants[name])
            rows = method.room("FLOAT", (PREFILL_TOKENS, 1, width), dynamic=True)
            method.kernel(
                "aten::slice_copy", "Tensor_out", table, zero, self._first, end, one, rows, rows
            )
            tables.append(rows)
        self._cos, self._sin = tables

    def _attend(self, heads: tuple[int, int, int], attended: int) -> None:
        method, arch = self._method, self._arch
        queries, keys, values = heads
        shape = (1, self._options["context"], arch.kv_heads, arch.head_dim)
        caches = method.room("FLOAT", shape), method.room("FLOAT", shape)
        for new, cache in ((keys, caches[0]), (values, caches[1])):
            done = method.room("FLOAT", (1,))
            method.kernel("llama::update_cache", "out", new, cache, self._first, done, done)
        none, causal = method.value("Null"), method.value("Bool", bool_val=True)
        dropout = method.value("Double", double_val=0.0)
        method.kernel(
            "llama::custom_sdpa", "out",
            queries, *caches, self._first, none, dropout, causal, none, attended, attended,
        )  # fmt: skip

    def _head(self, hidden: int, eps: int, segments: Sequence[int]) -> None:
        method, arch = self._method, self._arch
        norm = self._vector("model.norm.weight", arch.hidden_size)
        if method.name == LOGITS:
            logits = method.room("FLOAT", (1, PREFILL_TOKENS, arch.vocab_size), dynamic=True)
            method.delegate(segments[-1], hidden, norm, eps, logits)
        else:
            last, logits = (
                method.room("FLOAT", (1, size)) for size in (arch.hidden_size, arch.vocab_size)
            )
            one, minus = self._number(1), self._number(-1)
            method.kernel("aten::select_copy", "int_out", hidden, one, minus, last, last)
            method.delegate(segments[-2], last, norm, eps, logits)
        method.outputs(logits)


def scales_name(name: str) -> str:
    """Return what the scales of an embedding are called among constants."""
    return name + ".scales"
