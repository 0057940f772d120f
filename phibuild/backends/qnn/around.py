"""The graphs around the NPU's, which the CPU runs: what goes in, and the cache's new entries.

Rows of the mask: those of the heads that share keys lie below each other, as in the NPU's products.
Shapes are those of any number of tokens S."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from phibuild.backends.qnn.graph import FLOAT16, INT32, INT64, Graph
from phibuild.backends.qnn.layout import EMBEDDING
from phibuild.backends.qnn.names import (
    COS,
    IDS,
    LAST,
    MASK,
    NEWS,
    PASTS,
    PRESENTS,
    SIN,
    SLOTS,
    TOTAL,
    hidden_name,
)
from phibuild.backends.qnn.weights import Places
from phibuild.worker.architecture import Architecture
from phibuild.worker.rotary import short_frequencies

_FAR = np.float16(-10_000)


def tables(arch: Architecture, context: int) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
    """Return cos and sin [context, rotary_dim / 2] of positions, scaled as longrope has it."""
    positions = np.arange(context, dtype=np.float32)
    angles = np.outer(positions, short_frequencies(arch))
    factor = np.float32(arch.attention_factor)
    return (np.cos(angles) * factor).astype(np.float16), (np.sin(angles) * factor).astype(
        np.float16
    )


def inputs_graph(arch: Architecture, places: Places, context: int) -> Graph:
    """Return the graph that makes of ids [1, S] their vectors, cos and sin of their positions, the
    mask [1, 1, H / G * S, P + S] and the places [1, G, S, 3] of their keys in the cache."""
    graph = Graph("inputs")
    graph.input(IDS, INT32, [1, "S"])
    last = graph.input(LAST, INT32, [1, 1])
    graph.input(TOTAL, INT32, [1])
    _embedding(graph, arch, places)
    one = [graph.constant("zero", [0]), graph.constant("one", [1])]
    shape = graph.add("Shape", [IDS], "ids.shape")
    tokens = graph.add("Gather", [shape, one[1]], "tokens", axis=0)  # [1]
    scalar = graph.constant("scalar", np.zeros(0, np.int64))
    count = graph.add("Reshape", [tokens, scalar], "count")
    wide = graph.add("Cast", [last], "last.wide", to=INT64)
    wide = graph.add("Reshape", [wide, one[1]], "last.flat")  # [1]
    steps = graph.add(
        "Range",
        [graph.constant("first", np.int64(0)), count, graph.constant("step", np.int64(1))],
        "steps",
    )
    begin = graph.add("Sub", [wide, tokens], "begin.before")
    begin = graph.add("Add", [begin, one[1]], "begin")  # [1]
    # Fillings beyond the cache's end share its last place, which no token reads.
    positions = graph.add("Add", [begin, steps], "positions.all")
    end = graph.constant("end", [context - 1])
    positions = graph.add("Min", [positions, end], "positions")
    for name, table in zip((COS, SIN), tables(arch, context), strict=True):
        rows = graph.add(
            "Gather", [graph.constant(f"{name}.table", table), positions], f"{name}.rows", axis=0
        )
        axes = graph.constant("front", [0, 1])
        graph.add("Unsqueeze", [rows, axes], name)
        graph.output(name, FLOAT16, [1, 1, "S", arch.rotary_dim // 2])
    _mask(graph, arch, context)
    _slots(graph, arch)
    return graph


def _embedding(graph: Graph, arch: Architecture, places: Places) -> None:
    matrix, output = places.matrices[EMBEDDING], hidden_name(0)
    if matrix.how.is_integer:
        graph.add(
            "GatherBlockQuantized",
            [
                graph.external(matrix.flat("embedding.weight_Q4")),
                IDS,
                graph.external(matrix.block_scales("embedding.scales", 0, matrix.shape[0])),
            ],
            output,
            bits=4,
            block_size=matrix.how.group_size,
            gather_axis=0,
            quantize_axis=1,
        )
    else:
        weight = graph.external(matrix.numbers("embedding.weight", 0, matrix.shape[0]))
        graph.add("Gather", [weight, IDS], output, axis=0)
    graph.output(output, FLOAT16, [1, "S", arch.hidden_size])


def _mask(graph: Graph, arch: Architecture, context: int) -> None:
    near, far = graph.constant("near", np.float16(0)), graph.constant("far", _FAR)
    slots = graph.constant("cache.slots", np.arange(context))
    filled = graph.add("Less", [slots, "begin"], "cache.filled")
    row = graph.add("Where", [filled, near, far], "cache.row")
    tokens = graph.constant("row", [1])
    wanted = graph.add(
        "Concat", ["tokens", graph.constant("context", [context])], "cache.shape", axis=0
    )
    left = graph.add("Expand", [row, wanted], "mask.cache")
    column = graph.add("Unsqueeze", ["steps", tokens], "steps.column")
    seen = graph.add("LessOrEqual", ["steps", column], "own.seen")
    right = graph.add("Where", [seen, near, far], "mask.own")
    rows = graph.add("Concat", [left, right], "mask.rows", axis=1)
    repeats = graph.constant("repeats", [arch.heads // arch.kv_heads, 1])
    rows = graph.add("Tile", [rows, repeats], "mask.tiled")
    graph.add("Unsqueeze", [rows, graph.constant("front", [0, 1])], MASK)
    graph.output(MASK, FLOAT16, [1, 1, "R", "L"])


def _slots(graph: Graph, arch: Architecture) -> None:
    groups = arch.kv_heads
    ends = [graph.constant(name, [number]) for name, number in (("groups", groups), ("last", 1))]
    shape = graph.add(
        "Concat", [graph.constant("batch", [1]), ends[0], "tokens", ends[1]], "slots.shape", axis=0
    )
    batch = graph.constant("slots.batch", np.zeros((1, 1, 1, 1), np.int64))
    heads = graph.constant("slots.heads", np.arange(groups).reshape(1, groups, 1, 1))
    places = graph.add(
        "Unsqueeze", ["positions", graph.constant("around", [0, 1, 3])], "slots.places"
    )
    columns = [
        graph.add("Expand", [values, shape], f"slots.{axis}")
        for axis, values in enumerate((batch, heads, places))
    ]
    graph.add("Concat", columns, SLOTS, axis=3)
    graph.output(SLOTS, INT64, [1, groups, "S", 3])


def cache_graph(arch: Architecture, context: int) -> Graph:
    """Return the graph that writes new keys and values [1, G, S, d] into the cache [1, G, P, d]. A
    runtime that gives it one buffer for the old cache and the new has nothing copied."""
    graph = Graph("cache")
    groups, width = arch.kv_heads, arch.head_dim
    graph.input(SLOTS, INT64, [1, groups, "S", 3])
    for layer in range(arch.layers):
        for past, new, present in zip(PASTS, NEWS, PRESENTS, strict=True):
            shape = [1, groups, context, width]
            inputs = [
                graph.input(past % layer, FLOAT16, shape),
                SLOTS,
                graph.input(new % layer, FLOAT16, [1, groups, "S", width]),
            ]
            graph.add("ScatterND", inputs, present % layer)
            graph.output(present % layer, FLOAT16, shape)
    return graph
