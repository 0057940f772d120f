"""ONNX graphs in parts: nodes, initializers, what goes in and out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from phibuild.backends.qnn.weights import Stored

Shape = Sequence[int | str]
Values = NDArray[np.generic] | np.generic | list[int]
FLOAT16, INT32, INT64 = TensorProto.FLOAT16, TensorProto.INT32, TensorProto.INT64
_OPSETS = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
_IR_VERSION = 10
_CONTRIB = frozenset({"MatMulNBits", "GatherBlockQuantized"})
"""Operators of ONNX Runtime's own domain; its SimplifiedLayerNormalization is in ONNX's."""


class Graph:
    """A graph while it is written down. Values go by their names."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, TensorProto] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, kind: int, shape: Shape) -> str:
        self._inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def output(self, name: str, kind: int, shape: Shape) -> None:
        self._outputs.append(helper.make_tensor_value_info(name, kind, shape))

    def constant(self, name: str, values: Values) -> str:
        """Add an initializer; lists are int64. The same name again is the same one."""
        array = np.asarray(values, np.int64) if isinstance(values, list) else np.asarray(values)
        self._constants.setdefault(name, numpy_helper.from_array(array, name))
        return name

    def add(self, operator: str, inputs: Sequence[str], output: str, **attributes: object) -> str:
        """Add a node with one output and return that."""
        self.add_several(operator, inputs, [output], **attributes)
        return output

    def add_several(
        self, operator: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: object
    ) -> None:
        """Add a node with several outputs."""
        node = helper.make_node(
            operator,
            list(inputs),
            list(outputs),
            name=f"/{outputs[0]}/{operator}",
            domain="com.microsoft" if operator in _CONTRIB else "",
            **attributes,
        )
        self._nodes.append(node)

    def product(self, inputs: str, matrix: Stored, output: str, first: int, rows: int) -> str:
        """Multiply [1, S, width] by the transpose of some rows of a matrix."""
        how = matrix.how
        names = (f"{output}.weight_Q{how.bits}", f"{output}.weight_scales")
        self._constants[names[0]] = matrix.numbers(names[0], first, rows)
        self._constants[names[1]] = matrix.block_scales(names[1], first, rows)
        return self.add(
            "MatMulNBits",
            [inputs, *names],
            output,
            K=matrix.shape[1],
            N=rows,
            bits=how.bits,
            block_size=how.group_size,
        )

    def external(self, tensor: TensorProto) -> str:
        self._constants[tensor.name] = tensor
        return str(tensor.name)

    def norm(self, inputs: str, weight: NDArray[np.float16], epsilon: float, output: str) -> str:
        """Divide by the root of the mean square, computed in fp32, and multiply by the weight."""
        return self.add(
            "SimplifiedLayerNormalization",
            [inputs, self.constant(f"{output}.weight", weight)],
            output,
            axis=-1,
            epsilon=epsilon,
            stash_type=1,
        )

    def save(self, path: Path) -> None:
        graph = helper.make_graph(
            self._nodes, self._name, self._inputs, self._outputs, list(self._constants.values())
        )
        model = helper.make_model(
            graph, opset_imports=_OPSETS, ir_version=_IR_VERSION, producer_name="phibuild"
        )
        path.write_bytes(model.SerializeToString())
