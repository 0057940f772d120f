"""What an ONNX artifact holds, read back from its files."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import TensorProto

from phibuild.worker.protocol import Contents, WorkerError

# Inputs that take cos and sin tables, or the scales of the KV cache, which are not weights.
_TABLES = {"GroupQueryAttention": (7, 8, 12, 13), "RotaryEmbedding": (2, 3)}
_BITS = {
    TensorProto.FLOAT: 32,
    TensorProto.FLOAT16: 16,
    TensorProto.BFLOAT16: 16,
    TensorProto.INT8: 8,
    TensorProto.UINT8: 8,
    TensorProto.INT4: 4,
    TensorProto.UINT4: 4,
}


def inspect(folder: Path) -> Contents:
    """Return what the artifact's files hold.

    A product that MatMulNBits or DequantizeLinear feeds counts as int4 or int8 with its own
    width times outputs; every other initializer counts by its type, but for tables.
    Raises WorkerError if the data file does not hold what the graph refers to.
    """
    model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    sizes = {name: _data_bytes(folder, tensor) for name, tensor in initializers.items()}
    tables = _tables(model) & initializers.keys()
    types: dict[str, int] = {}
    claimed = set(tables)
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            kind, parameters = _product(node, initializers, sizes)
        elif node.op_type == "DequantizeLinear":
            weight = initializers[node.input[0]]
            kind, parameters = f"int{_BITS[weight.data_type]}", math.prod(weight.dims)
        else:
            continue
        types[kind] = types.get(kind, 0) + parameters
        claimed.update(name for name in node.input if name in initializers)
    tables_bytes = sum(sizes[name] for name in tables)
    for name, tensor in initializers.items():
        if name not in claimed:
            kind = TensorProto.DataType.Name(tensor.data_type)
            types[kind] = types.get(kind, 0) + math.prod(tensor.dims)
    return {"types": types, "weight_bytes": sum(sizes.values()) - tables_bytes}


def _tables(model: onnx.ModelProto) -> set[str]:
    return {
        node.input[index]
        for node in model.graph.node
        for index in _TABLES.get(node.op_type, ())
        if index < len(node.input)
    }


def _product(
    node: onnx.NodeProto, initializers: dict[str, TensorProto], sizes: dict[str, int]
) -> tuple[str, int]:
    """Return kind and weights of a MatMulNBits, its packed bytes checked against them."""
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    width, outputs = attributes["K"], attributes["N"]
    bits, block = attributes["bits"], attributes["block_size"]
    expected = outputs * math.ceil(width / block) * block * bits // 8
    if node.input[1] not in initializers:
        raise WorkerError(f"the weight of {node.name} is not in model.onnx")
    if sizes[node.input[1]] != expected:
        raise WorkerError(
            f"{node.name} holds {sizes[node.input[1]]:,} bytes; {width} x {outputs} weights of "
            f"{bits} bits in blocks of {block} take {expected:,}"
        )
    return f"int{bits}", width * outputs


def _data_bytes(folder: Path, tensor: TensorProto) -> int:
    """Return the bytes of an initializer, and check that its file has them."""
    expected: int = math.ceil(math.prod(tensor.dims) * _item_bits(tensor) / 8)
    if tensor.data_location != TensorProto.EXTERNAL:
        return expected
    place = dict(_entries(tensor))
    offset, length = int(place.get("offset", "0")), int(place["length"])
    if length != expected:
        raise WorkerError(f"{tensor.name} has {length:,} bytes, its shape needs {expected:,}")
    if offset + length > (folder / place["location"]).stat().st_size:
        raise WorkerError(f"{place['location']} ends before {tensor.name}")
    return length


def _entries(tensor: TensorProto) -> Iterator[tuple[str, str]]:
    for entry in tensor.external_data:
        yield entry.key, entry.value


def _item_bits(tensor: TensorProto) -> int:
    if tensor.data_type not in _BITS:
        kind = TensorProto.DataType.Name(tensor.data_type)
        raise WorkerError(f"{tensor.name} is of type {kind}, which no weight has")
    return _BITS[tensor.data_type]
