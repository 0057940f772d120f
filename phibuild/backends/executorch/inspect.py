"""What an ExecuTorch program on disk holds: the types of its weights, by its schemas' own reader.

Nothing of the writer is used: what kernels and delegates read is counted, so that a weight that
should not be there shows. What is smaller than any weight (positions, rope) is not one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from phibuild.backends.executorch import flatc
from phibuild.backends.executorch.program import segments_begin
from phibuild.worker.json_values import JsonDict
from phibuild.worker.protocol import Contents, WorkerError

MODEL = "model.pte"
"""The name of the file."""
_FORWARD = "forward"
_TYPES = {
    "xnn_datatype_fp32": ("FLOAT32", 32), "xnn_datatype_fp16": ("FLOAT16", 16),
    "xnn_datatype_qcint8": ("INT8", 8), "xnn_datatype_qbint4": ("INT4", 4),
    "xnn_datatype_qcint4": ("INT4", 4), "FLOAT": ("FLOAT32", 32),
    "HALF": ("FLOAT16", 16), "CHAR": ("INT8", 8),
}  # fmt: skip


@dataclass(frozen=True)
class StoredTensor:
    """A constant that a kernel or a delegate reads: its key, type, shape, and segment bytes."""

    key: str
    type: str
    shape: tuple[int, ...]
    nbytes: int
    is_scale: bool = False


def read_program(path: Path) -> tuple[JsonDict, int]:
    """Return a program's document and where its segments begin. Raises WorkerError if it is
    none."""
    with path.open("rb") as file:
        try:
            size, begin = segments_begin(file.read(64))
        except ValueError as error:
            raise WorkerError(f"{path.name}: {error}") from error
        file.seek(0)
        return flatc.read(flatc.PROGRAM, file.read(size)), begin


def facts(program: JsonDict) -> dict[str, list[int]]:
    """Return what a program's methods of no inputs say: numbers."""
    found = {}
    for plan in program["execution_plan"]:
        if not plan["inputs"]:
            values = [plan["values"][number]["val"] for number in plan["outputs"]]
            found[plan["name"]] = [int(value.get("int_val", 0)) for value in values]
    return found


def inspect(folder: Path) -> Contents:
    """Return what an artifact's program holds: a weight's scales are its bytes, too."""
    types: Counter[str] = Counter()
    nbytes = 0
    for tensor in stored_tensors(folder / MODEL):
        nbytes += tensor.nbytes
        if not tensor.is_scale:
            types[tensor.type] += math.prod(tensor.shape)
    return {"types": dict(types), "weight_bytes": nbytes}


def stored_tensors(path: Path) -> Iterator[StoredTensor]:
    """Yield the weights that a program's `forward` reads."""
    program, begin = read_program(path)
    (plan,) = (plan for plan in program["execution_plan"] if plan["name"] == _FORWARD)
    yield from _of_kernels(plan)
    with path.open("rb") as file:
        seen: set[str] = set()
        for delegate in plan["delegates"]:
            segment = program["segments"][delegate["processed"]["index"]]
            file.seek(begin + segment["offset"])
            data = file.read(segment["size"])
            at, size = (int.from_bytes(data[place : place + 4], "little") for place in (10, 14))
            graph = flatc.read(flatc.XNNPACK, data[at : at + size])
            for tensor in _of_graph(graph):
                if tensor.key not in seen:
                    seen.add(tensor.key)
                    yield tensor


def _of_kernels(plan: JsonDict) -> Iterator[StoredTensor]:
    names = [operator["name"] for operator in plan["operators"]]
    reads = {"aten::embedding": (0,), "quantized_decomposed::embedding_byte": (0, 1)}
    for instruction in plan["chains"][0]["instructions"]:
        own = instruction["instr_args"]
        if instruction["instr_args_type"] == "DelegateCall":
            # Norms are a delegate's inputs: it keeps nothing but what it packs.
            arguments = [plan["values"][number]["val"] for number in own["args"]]
            chosen = [(one, False) for one in arguments if _is_vector(one)]
        else:
            places = reads.get(names[own["op_index"]], ())
            chosen = [(plan["values"][own["args"][place]]["val"], place > 0) for place in places]
        for tensor, is_scale in chosen:
            name, bits = _TYPES[tensor["scalar_type"]]
            shape = tuple(tensor["sizes"])
            key = str(tensor["data_buffer_idx"])
            yield StoredTensor(key, name, shape, bits * math.prod(shape) // 8, is_scale)


def _is_vector(tensor: JsonDict) -> bool:
    """Return whether a delegate's argument is a norm: eps has one element."""
    return bool(tensor["data_buffer_idx"]) and len(tensor["sizes"]) == 1 and tensor["sizes"][0] > 1


def _of_graph(graph: JsonDict) -> Iterator[StoredTensor]:
    constants = graph["constant_data"]
    for value in graph["xvalues"]:
        own = value["xvalue_union"]
        tensor = own.get("tensor_value", own)
        constant = constants[tensor["constant_buffer_idx"]]
        if not tensor["constant_buffer_idx"] or constant["size"] <= 0:
            continue
        name, _ = _TYPES[tensor["datatype"]]
        key = constant["named_key"]
        if not key.endswith(".weight"):
            continue
        yield StoredTensor(key, name, tuple(tensor["dims"]), constant["size"])
        if "quant_params" in own:
            scales = constants[own["quant_params"]["scale_buffer_idx"]]
            yield StoredTensor(scales["named_key"], "scales", (), scales["size"], True)
