"""What an artifact's files hold, read back without anything that the writer knew."""

from __future__ import annotations

import json
import struct
from collections import Counter
from pathlib import Path

from phibuild.backends.pytorch.config_groups import PromisedLayers
from phibuild.backends.pytorch.layout import ROWS, quantized_kind
from phibuild.worker.protocol import Contents, WorkerError
from phibuild.worker.safetensors import TensorInfo, read_checkpoint

_ROW_KINDS = {how.stored: how for how in ROWS.values()}
_PARTS = ("_packed", "_scale", "_shape", "_zero_point")


def inspect(folder: Path) -> Contents:
    """Return what the artifact's files hold.

    Kinds are safetensors' dtypes and w4, w8, w4-asym, w8-asym, w8a8, fp8. Raises WorkerError if
    config.json promises another quantization than the tensors have, ValueError if a file is
    damaged.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tensors = read_checkpoint(folder)
    promised = PromisedLayers(config)
    types: Counter[str] = Counter()
    for name, info in tensors.items():
        if name.endswith("weight_packed"):
            weight = name.removesuffix("_packed")
            kind, parameters = _quantized(weight, tensors, promised)
            types[kind] += parameters
        elif info.dtype in _ROW_KINDS:
            types[_rows(name, info, tensors, promised)] += info.parameters
        elif not name.endswith(tuple(f"weight{part}" for part in _PARTS)):
            types[info.dtype] += info.parameters
    if promised.is_quantized and not any(kind[0] in "wf" for kind in types):
        raise WorkerError("config.json promises quantized layers, the weights hold none")
    return {"types": dict(types), "weight_bytes": sum(info.nbytes for info in tensors.values())}


def _rows(
    weight: str, info: TensorInfo, tensors: dict[str, TensorInfo], layers: PromisedLayers
) -> str:
    """Return the kind of a layer of 8 bits with a scale for each row."""
    how = _ROW_KINDS[info.dtype]
    scale, promised = tensors.get(f"{weight}_scale"), layers.of(weight)
    rounded = layers.activations_of(weight)
    found = {"num_bits": 8, "strategy": "channel", "symmetric": True, "type": how.type}
    if (
        scale is None
        or scale.shape != (info.shape[0], 1)
        or promised is None
        or any(promised[key] != value for key, value in found.items())
        or rounded is None
        or (rounded["type"], rounded["strategy"]) != (how.type, "token")
    ):
        raise WorkerError(f"{weight} is stored as {found}, config.json promises {promised}")
    return how.kind


def _quantized(
    weight: str, tensors: dict[str, TensorInfo], layers: PromisedLayers
) -> tuple[str, int]:
    """Return kind and number of weights of one packed layer."""
    parts = {part: tensors[weight + part] for part in _PARTS if weight + part in tensors}
    shape, promised = parts.get("_shape"), layers.of(weight)
    if shape is None or "_scale" not in parts or promised is None:
        raise WorkerError(f"{weight} is packed but its shape, scales or configuration are missing")
    with shape.path.open("rb") as file:
        file.seek(shape.offset)
        rows, cols = struct.unpack("<2q", file.read(16))
    packed_rows, words = parts["_packed"].shape
    found = {
        "num_bits": words * 32 // cols,
        "group_size": cols // parts["_scale"].shape[1],
        "symmetric": "_zero_point" not in parts,
    }
    if packed_rows != rows or any(promised[key] != value for key, value in found.items()):
        raise WorkerError(f"{weight} is stored as {found}, config.json promises {promised}")
    return quantized_kind(found["num_bits"], found["symmetric"]), rows * cols
