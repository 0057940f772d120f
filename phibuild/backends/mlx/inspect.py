"""What an MLX artifact's files hold, read back without anything that the writer knew."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from phibuild.worker.json_values import JsonDict
from phibuild.worker.protocol import Contents, WorkerError
from phibuild.worker.safetensors import TensorInfo, read_checkpoint


def inspect(folder: Path) -> Contents:
    """Return what the artifact's files hold.

    Bits and widths come from the shapes of packed weights and scales. Raises WorkerError if they
    contradict config.json, by which mlx-lm loads them.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tensors = read_checkpoint(folder)
    types: Counter[str] = Counter()
    for name, tensor in tensors.items():
        if name.endswith((".scales", ".biases")):
            continue
        scales = tensors.get(name.removesuffix("weight") + "scales")
        if scales is None:
            types[tensor.dtype] += tensor.parameters
        else:
            whole = config.get("quantization") or {}
            own = whole.get(name.removesuffix(".weight"), whole)
            kind, parameters = _packed(tensor, scales, own)
            types[kind] += parameters
    return {
        "types": dict(sorted(types.items())),
        "weight_bytes": sum(tensor.nbytes for tensor in tensors.values()),
    }


def _packed(weight: TensorInfo, scales: TensorInfo, quantization: JsonDict) -> tuple[str, int]:
    """Return the kind of a packed weight, and how many weights of the original it holds."""
    rows, words = weight.shape
    width = scales.shape[1] * quantization.get("group_size", 0)
    bits = words * 32 / width if width else 0
    affine = quantization.get("mode") == "affine"
    microscaled = scales.dtype == "U8"
    if weight.dtype != "U32" or bits != quantization.get("bits") or affine == microscaled:
        raise WorkerError(
            f"{weight.name} ({weight.dtype} {list(weight.shape)}, scales {scales.dtype} "
            f"{list(scales.shape)}) is not stored as config.json says: {quantization}"
        )
    return (f"q{bits:.0f}" if affine else quantization["mode"]), rows * width
