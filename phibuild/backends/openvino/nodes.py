"""Small helpers to write an OpenVINO graph down: constants of each type, and names.

OpenVINO names a node after a process-wide counter unless told otherwise; `name_all` gives every
such node a name from its place in the graph, so that the same model always has the same bytes.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import openvino as ov
from numpy.typing import ArrayLike
from openvino import opset13 as opset
from openvino.utils.node_factory import NodeFactory

__all__ = [
    "LAST",
    "Output",
    "f32",
    "gather",
    "i32",
    "i64",
    "name_all",
    "named",
    "opset",
    "slice_",
    "swish",
]

Output: TypeAlias = "ov.Node | ov.Output"
"""What another node takes: an output, or a node that has only one."""
_FACTORY = NodeFactory("opset13")
LAST = int(np.iinfo(np.int64).max)
"""The end of a slice that runs to the end of its axis."""


def f32(value: ArrayLike) -> ov.Node:
    return opset.constant(np.asarray(value, dtype=np.float32))


def i64(value: ArrayLike) -> ov.Node:
    return opset.constant(np.asarray(value, dtype=np.int64))


def i32(value: ArrayLike) -> ov.Node:
    return opset.constant(np.asarray(value, dtype=np.int32))


def gather(data: Output, indices: Output) -> ov.Node:
    """Return `data[indices]` along axis 0."""
    return opset.gather(data, indices, i64(0))


def slice_(data: Output, start: int, stop: int, axis: int) -> ov.Node:
    """Return `data[start:stop]` along `axis`."""
    return opset.slice(data, i64([start]), i64([stop]), i64([1]), i64([axis]))


def swish(x: Output) -> ov.Node:
    """Return x * sigmoid(x), without the input for beta that `opset.swish` always adds."""
    return _FACTORY.create("Swish", [x.output(0) if isinstance(x, ov.Node) else x])


def named(node: ov.Node, name: str) -> ov.Node:
    """Name a node and return it."""
    node.set_friendly_name(name)
    return node


def name_all(model: ov.Model) -> None:
    """Name the nodes that nobody named, by type and position in the topological order."""
    for position, node in enumerate(model.get_ordered_ops()):
        if node.get_friendly_name() == node.get_name():
            node.set_friendly_name(f"{node.get_type_name()}_{position}")
