"""A graph that XNNPACK computes in one go, as its delegate in ExecuTorch reads it.

The document is that of backends/xnnpack/serialization/schema.fbs, behind the header of
xnnpack_graph_serialize.py. Weights are not in it: the graph asks for them by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from phibuild.worker.encodings import Encoding
from phibuild.worker.json_values import JsonDict

DELEGATE = "XnnpackBackend"
SCALES = ".scales"
"""What follows a weight's name in that of its scales."""
_NONE = 0xFFFFFFFF
_INPUT, _OUTPUT = 1, 2
_NAMED = 2**64 - 1
_FACTORS = {
    "FLOAT32": "xnn_datatype_fp32",
    "FLOAT16": "xnn_datatype_fp16",
    "INT8": "xnn_datatype_qcint8",
    "INT4": "xnn_datatype_qbint4",
}
_HEADER = 32


@dataclass(frozen=True)
class Weight:
    """A matrix [out, in] that is kept under a name, and how."""

    name: str
    shape: tuple[int, int]
    how: Encoding


class Graph:
    """Values and nodes. Inputs and outputs are numbered in the order in which they are added,
    inputs first, as the delegate's call has its arguments. The size of a dimension that the call
    decides is the most that it can be."""

    def __init__(self) -> None:
        self._values: list[JsonDict] = []
        self._nodes: list[JsonDict] = []
        self._shapes: list[tuple[int, ...]] = []
        self._constants: list[JsonDict] = [{"offset": 0, "size": 0}]
        self._external: dict[int, list[int]] = {_INPUT: [], _OUTPUT: []}
        self._quantized: dict[int, int] = {}

    def input(self, *shape: int) -> int:
        """Return a new input, fp32."""
        return self._outer(_INPUT, shape)

    def shape(self, value: int) -> tuple[int, ...]:
        return self._shapes[value]

    def unary(self, kind: str, x: int, *, output: bool = False) -> int:
        """Return a node's output: XNNSigmoid, XNNReciprocalSquareRoot."""
        y = self._result(self.shape(x), output)
        return self._node(kind, y, input_id=x)

    def binary(self, kind: str, x: int, y: int, *, output: bool = False) -> int:
        """Return a node's output: XNNAdd, XNNMultiply. The shape is that of x."""
        z = self._result(self.shape(x), output)
        return self._node(kind, z, input1_id=x, input2_id=y)

    def reshape(self, x: int, shape: Sequence[int], *, output: bool = False) -> int:
        """Return x in another shape, whose second dimension is what the others leave."""
        y = self._result(tuple(shape), output)
        sizes = [size if axis != 1 else 0 for axis, size in enumerate(shape)]
        return self._node("XNNStaticReshape", y, input_id=x, num_dims=len(sizes), new_shape=sizes)

    def linear(self, x: int, weight: Weight, *, output: bool = False) -> int:
        """Return x [..., in] times a weight's transpose. Integers are multiplied by integers: each
        row of x is put on 8 bits first, once for all weights."""
        if weight.how.is_integer:
            x = self._on_8_bits(x)
        y = self._result((*self.shape(x)[:-1], weight.shape[0]), output)
        filter_id = self._weight(weight)
        return self._node("XNNFullyConnected", y, input1_id=x, filter_id=filter_id, bias_id=_NONE)

    def document(self) -> JsonDict:
        """Return what the schema calls XNNGraph."""
        inputs, outputs = self._external[_INPUT], self._external[_OUTPUT]
        return {
            "version": "0",
            "xnodes": self._nodes,
            "xvalues": self._values,
            "num_externs": len(inputs) + len(outputs),
            "input_ids": inputs,
            "output_ids": outputs,
            "constant_data": self._constants,
        }

    def _on_8_bits(self, x: int) -> int:
        if x not in self._quantized:
            y = self._value(
                self.shape(x),
                "xnn_datatype_qdint8",
                quantized=("PerTokenDynamicQuant", {"num_nonbatch_dims": 1}),
            )
            self._quantized[x] = self._node("XNNConvert", y, input_id=x)
        return self._quantized[x]

    def _weight(self, weight: Weight) -> int:
        how = weight.how
        data = self._constant(weight.name, how.data_bytes(weight.shape))
        quantized: tuple[str, Mapping[str, Any]] | None = None
        if how.is_integer:
            scales = self._constant(weight.name + SCALES, how.scale_bytes(weight.shape))
            size = 4 if how.kind == "INT8" else 2
            own: JsonDict = {
                "scale": [],
                "channel_dim": 0,
                "scale_buffer_idx": scales,
                "num_scales": how.scale_bytes(weight.shape) // size,
            }
            if how.kind == "INT4":
                own["group_size"] = how.group_size
            kind = "PerChannelQuant" if how.kind == "INT8" else "PerChannelGroupQuant"
            quantized = kind, own
        return self._value(weight.shape, _FACTORS[how.kind], constant=data, quantized=quantized)

    def _constant(self, name: str, nbytes: int) -> int:
        self._constants.append({"offset": _NAMED, "size": nbytes, "named_key": name})
        return len(self._constants) - 1

    def _result(self, shape: tuple[int, ...], output: bool) -> int:
        return self._outer(_OUTPUT, shape) if output else self._value(shape)

    def _outer(self, flag: int, shape: tuple[int, ...]) -> int:
        number = len(self._external[_INPUT]) + len(self._external[_OUTPUT])
        if flag == _INPUT and self._external[_OUTPUT]:
            raise ValueError("inputs come before outputs")
        value = self._value(shape, external=number, flags=flag)
        self._external[flag].append(value)
        return value

    def _value(
        self,
        shape: tuple[int, ...],
        kind: str = "xnn_datatype_fp32",
        *,
        constant: int = 0,
        external: int = _NONE,
        flags: int = 0,
        quantized: tuple[str, Mapping[str, Any]] | None = None,
    ) -> int:
        number = len(self._values)
        tensor: JsonDict = {
            "datatype": kind,
            "num_dims": len(shape),
            "dims": list(shape),
            "constant_buffer_idx": constant,
            "external_id": external,
            "flags": flags,
            "id_out": number,
        }
        value: JsonDict = {"xvalue_union_type": "XNNTensorValue", "xvalue_union": tensor}
        if quantized is not None:
            whole = {
                "tensor_value": tensor,
                "quant_params_type": quantized[0],
                "quant_params": dict(quantized[1]),
            }
            value = {"xvalue_union_type": "XNNQuantizedTensorValue", "xvalue_union": whole}
        self._values.append(value)
        self._shapes.append(shape)
        return number

    def _node(self, kind: str, output: int, **own: object) -> int:
        self._nodes.append(
            {
                "xnode_union_type": kind,
                "xnode_union": {**own, "output_id": output, "flags": 0},
                "debug_handle": len(self._nodes),
            }
        )
        return output


def payload(graph: bytes) -> bytes:
    """Return a graph's flatbuffer behind the header by which the delegate finds it."""
    after = _HEADER + len(graph)
    after += -after % 16
    header = b"\0" * 4 + b"XH00"
    for number, size in ((30, 2), (_HEADER, 4), (len(graph), 4), (after, 4), (0, 8)):
        header += number.to_bytes(size, "little")
    return (header.ljust(_HEADER, b"\0") + graph).ljust(after, b"\0")
