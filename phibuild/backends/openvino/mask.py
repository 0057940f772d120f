"""Lengths and the attention mask in the graph.

The nodes are those that tracing Transformers' `sdpa` mask gives (`create_causal_mask`, and
`create_sliding_window_causal_mask` where the model has a window), for the sake of the patterns
that plugins know: paged attention, static shapes on the NPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from phibuild.backends.openvino.nodes import Output, f32, gather, i32, i64, opset

_MASKED = -65504.0
"""Added to the score of a masked pair: the lowest fp16 number, so that it is one on GPUs too."""


@dataclass(frozen=True)
class Lengths:
    """Sizes that are known when the graph runs: scalars, and [1] vectors for shapes."""

    batch: Output
    tokens: Output
    past: Output
    total: Output
    tokens_vector: Output
    total_vector: Output


def lengths(hidden: Output, past_key: Output) -> Lengths:
    """Return the sizes of `hidden` [batch, tokens, width] and of the first layer's cached keys
    [batch, kv_heads, past, head_dim]."""
    past = gather(opset.shape_of(past_key), i64(2))
    shape = opset.shape_of(hidden)
    tokens = gather(shape, i64(1))
    tokens_vector = opset.reshape(tokens, i64([1]), False)
    return Lengths(
        batch=gather(shape, i64(0)),
        tokens=tokens,
        past=past,
        total=opset.add(past, tokens),
        tokens_vector=tokens_vector,
        total_vector=opset.add(opset.reshape(past, i64([1]), False), tokens_vector),
    )


def attention_mask(mask: Output, sizes: Lengths, window: int | None) -> Output:
    """Return what is added to the scores, [batch, 1, tokens, total]: 0, or `_MASKED`.

    `mask` [batch, total] is 0 for padding. A query sees keys up to itself, and with a `window`
    the last `window` of them.
    """
    keys = opset.range(i32(0), sizes.total, i32(1), "i64")
    for axis in (0, 1, 2):
        keys = opset.unsqueeze(keys, i64(axis))
    queries = opset.range(i32(0), opset.squeeze(sizes.tokens_vector, i32(0)), i32(1), "i64")
    first = gather(opset.range(sizes.past, sizes.total, i32(1), "i64"), i64(0))
    queries = opset.add(queries, first)
    for axis in (0, 1, 3):
        queries = opset.unsqueeze(queries, i64(axis))
    visible = opset.less_equal(keys, queries)
    if window is not None:
        start = opset.add(queries, i64(np.full((1, 1, 1, 1), -window)))
        inside = opset.bitwise_and(_true(), opset.greater(keys, start))
        visible = opset.bitwise_and(inside, visible)
    visible = opset.bitwise_and(_true(), visible)
    visible = opset.bitwise_and(visible, _not_padding(mask, keys, sizes))
    shape = opset.concat(
        [
            opset.reshape(sizes.batch, i64([1]), False),
            i64([1]),
            sizes.tokens_vector,
            opset.unsqueeze(sizes.total, i32(0)),
        ],
        0,
    )
    visible = opset.broadcast(visible, shape, broadcast_spec="BIDIRECTIONAL")
    return opset.select(visible, f32(0.0), f32(_MASKED))


def _not_padding(mask: Output, keys: Output, sizes: Lengths) -> Output:
    """Return `mask[batch_index, keys]` as [batch, 1, 1, total], gathered from the flat mask."""
    mask = opset.convert(mask, "boolean")
    shape = opset.shape_of(mask, output_type="i32")
    count = opset.concat([opset.reduce_prod(shape, i32(0), True), i32([-1])], 0)
    flat = opset.reshape(mask, count, True)
    rows = opset.range(i32(0), sizes.batch, i32(1), "i64")
    for axis in (1, 2, 3):
        rows = opset.unsqueeze(rows, i64(axis))
    columns = opset.split(shape, i32(0), 2).output(1)
    index = opset.add(
        opset.convert(keys, "i32"), opset.multiply(opset.convert(rows, "i32"), columns)
    )
    values = opset.reshape(opset.gather(flat, index, i32(0)), i64([-1]), False)
    return opset.reshape(values, opset.shape_of(index, output_type="i32"), False)


def _true() -> Output:
    return opset.constant(np.asarray(True))
