"""Quantize LiteRT models by ai-edge-quantizer and compare; runs in the vendor's environment.

`python litert_vendor.py FOLDER` finds FOLDER/<name>/model.tflite, quantizes fp32's by the recipe of
each other name that is there, and prints as JSON, by name, how many weights both have and which
differ: in type, in shape, in bytes, in scales.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

MODEL = "model.tflite"
WEIGHT = b".weight"


def recipes() -> dict[str, Any]:
    from ai_edge_quantizer import recipe
    from ai_edge_quantizer.qtyping import QuantGranularity

    floats = {
        "regex": ".*",
        "operation": "*",
        "algorithm_key": "float_casting",
        "op_config": {
            "weight_tensor_config": {
                "num_bits": 16,
                "symmetric": True,
                "granularity": "TENSORWISE",
                "dtype": "FLOAT",
            },
            "compute_precision": "FLOAT",
            "explicit_dequantize": True,
        },
    }
    return {
        "int8": recipe.dynamic_wi8_afp32(),
        "int4-b32": recipe.dynamic_wi4b32_afp32(),
        "int4-b64": recipe.dynamic_wi4b64_afp32(),
        "int4-b128": recipe._dynamic_wix_afp32(
            num_bits=4, granularity=QuantGranularity.BLOCKWISE_128
        ),
        "fp16": [floats],
    }


def weights(path: Path) -> dict[str, list[Any]]:
    """Return what the last graph of a model has of each weight: type, shape, digests of its bytes
    and its scales."""
    from ai_edge_litert import schema_py_generated as schema

    raw = path.read_bytes()
    model = schema.ModelT.InitFromPackedBuf(raw, 0)
    graph = model.subgraphs[-1]

    def content(tensor: Any) -> str:
        buffer = model.buffers[tensor.buffer]
        data = raw[buffer.offset :][: buffer.size] if buffer.data is None else bytes(buffer.data)
        return hashlib.sha256(data).hexdigest()

    found = {}
    for tensor in graph.tensors:
        if not tensor.name.endswith(WEIGHT):
            continue
        scales, blocks = "", 0
        if tensor.quantization is not None:
            if tensor.quantization.details is not None:
                blocks = tensor.quantization.details.blockSize
                scales = content(graph.tensors[tensor.quantization.details.scales])
            elif tensor.quantization.scale is not None:
                scales = hashlib.sha256(tensor.quantization.scale.tobytes()).hexdigest()
        shape = [int(size) for size in tensor.shape]
        found[tensor.name.decode()] = [tensor.type, shape, content(tensor), blocks, scales]
    return found


def main() -> None:
    from ai_edge_quantizer import quantizer

    folder = Path(sys.argv[1])
    result = {}
    for name, recipe in recipes().items():
        ours = folder / name / MODEL
        if not ours.is_file():
            continue
        theirs = folder / f"{name}.tflite"
        work = quantizer.Quantizer(str(folder / "fp32" / MODEL))
        work.load_quantization_recipe(recipe)
        work.quantize().export_model(str(theirs), overwrite=True)
        mine, expected = weights(ours), weights(theirs)
        wrong = [key for key in mine.keys() | expected.keys() if mine.get(key) != expected.get(key)]
        result[name] = {"weights": len(expected), "differ": sorted(wrong)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
