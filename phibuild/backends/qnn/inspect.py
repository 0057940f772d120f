"""What a QNN artifact holds: the types of its weights, and the nodes that the NPU does not run.

Nothing of the writer is used. A context binary is Qualcomm's own format, which nothing but its NPU
reads: of one, the types are those of the graphs that it was compiled of, read before they go.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import onnx
from onnx import TensorProto

from phibuild.worker.companions import read_json
from phibuild.worker.protocol import Contents, WorkerError

NPU = "npu.json"
"""What is known of binaries: their chip, contents of their graphs, nodes off the NPU, the gate."""


def inspect(folder: Path) -> Contents:
    """Return what an artifact's graphs hold, or held when they were compiled. Raises WorkerError if
    a file of weights is shorter than its graph says."""
    if (folder / NPU).is_file():
        document = read_json(folder / NPU)
        return {"types": document["types"], "weight_bytes": document["weight_bytes"]}
    types: Counter[str] = Counter()
    places: dict[tuple[str, int], int] = {}
    # A prompt's graphs hold the same weights as a token's.
    for path in [*sorted(folder.glob("token-*.onnx")), folder / "inputs.onnx"]:
        graph = onnx.load(path, load_external_data=False).graph
        tensors = {tensor.name: tensor for tensor in graph.initializer}
        vectors = {
            node.input[1] for node in graph.node if node.op_type == "SimplifiedLayerNormalization"
        }
        for name in vectors:
            types["FLOAT16"] += math.prod(tensors[name].dims)
            places[f"{path.name}:{name}", 0] = 2 * math.prod(tensors[name].dims)
        for node in graph.node:
            _count(node, tensors, folder, types, places)
    return {"types": dict(types), "weight_bytes": sum(places.values())}


def _count(
    node: onnx.NodeProto,
    tensors: dict[str, TensorProto],
    folder: Path,
    types: Counter[str],
    places: dict[tuple[str, int], int],
) -> None:
    """Count the weights of a node that lie in files. Those that several nodes share count once."""
    external = [tensors[name] for name in node.input if _is_external(tensors.get(name))]
    found = {}
    for tensor in external:
        place = {entry.key: entry.value for entry in tensor.external_data}
        begin, length = int(place["offset"]), int(place["length"])
        path = folder / place["location"]
        if path.stat().st_size < begin + length:
            raise WorkerError(f"{path.name} is shorter than its graph says")
        found[place["location"], begin] = length
    if not external or found.keys() <= places.keys():
        return
    places.update(found)
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    if node.op_type == "MatMulNBits":
        types[f"INT{attributes['bits']}"] += attributes["K"] * attributes["N"]
    elif node.op_type == "GatherBlockQuantized":
        scales = external[-1]
        types[f"INT{attributes['bits']}"] += math.prod(scales.dims) * attributes["block_size"]
    else:
        types["FLOAT16"] += math.prod(external[0].dims)


def _is_external(tensor: TensorProto | None) -> bool:
    return tensor is not None and tensor.data_location == TensorProto.EXTERNAL


def off_npu(folder: Path) -> dict[str, dict[str, int]]:
    """Return how many nodes of which kind the CPU runs: those of the graphs around the NPU's."""
    found = {}
    for name in ("inputs", "cache"):
        graph = onnx.load(folder / f"{name}.onnx", load_external_data=False).graph
        found[name] = dict(sorted(Counter(node.op_type for node in graph.node).items()))
    return found
