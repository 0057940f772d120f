"""Compare the weights of QNN graphs with those of onnxruntime-genai's builder, in an environment
with onnx: `python qnn_compare.py OURS VENDORS` prints how many were the same, by graph."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

Array = NDArray[np.generic]


def main(ours: Path, vendors: Path) -> None:
    theirs = dict(_weights(vendors / "model.onnx"))
    same: Counter[str] = Counter()
    for path in sorted(ours.glob("*.onnx")):
        for name, values in _weights(path):
            expected = theirs[name]
            assert values.dtype == expected.dtype, name
            assert np.array_equal(values.reshape(-1), expected.reshape(-1)), (path.name, name)
            same[path.stem.split("-")[0]] += 1
    print("RESULT " + json.dumps(same))


def _weights(path: Path) -> Iterator[tuple[str, Array]]:
    """Yield what nodes multiply by, norm with and look up in, under one name for both makers."""
    graph = onnx.load(path).graph
    tensors = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    norms = 0
    for node in graph.node:
        if node.op_type == "MatMulNBits":
            name = re.sub(r"(^/?(model[/.])?|[/.]MatMul.*$)", "", node.output[0]).replace("/", ".")
            for kind, key in zip(("codes", "scales"), node.input[1:3], strict=True):
                yield f"{name}.{kind}", tensors[key]
        elif node.op_type.endswith("SimplifiedLayerNormalization"):
            key = node.input[2 if node.op_type.startswith("Skip") else 1]
            layer = re.search(r"layers\.\d+\.\w+_layernorm", key)
            is_last = layer is None or "final" in key
            yield ("norm" if is_last else layer[0]), tensors[key]  # type: ignore[index]
            norms += 1
        elif node.op_type == "GatherBlockQuantized":
            yield "embedding.scales", tensors[node.input[2]]
            codes = node.input[0]
            if codes not in tensors:  # theirs is another shape of the output layer's
                codes = next(
                    name for name in tensors if name.startswith("lm_head") and "_Q" in name
                )
            yield "embedding.codes", tensors[codes]
        elif node.op_type == "Gather" and node.input[0] in tensors:
            values = tensors[node.input[0]]
            if values.ndim == 2 and node.input[1] == "input_ids":
                yield "embedding", values


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
