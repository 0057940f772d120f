"""Compare the weights of two LiteRT models, whatever they are called; runs in the litert toolchain.

`python litert_compare.py OURS THEIRS` takes folders with models or bundles, and prints as JSON the
weights that one has and the other has not: type and shape.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from ai_edge_litert import schema_py_generated as schema

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from phibuild.backends.litert.inspect import model_section  # noqa: E402

_LARGE = 1024


def weights(folder: Path) -> Counter[tuple[Any, ...]]:
    """Return the large constants of a model's last graph."""
    path, section = model_section(folder)
    # Not closed: what the reader gives points into it.
    data = mmap.mmap(os.open(path, os.O_RDONLY), 0, prot=mmap.PROT_READ)
    model = schema.ModelT.InitFromPackedBuf(data, section.begin)
    graph = model.subgraphs[-1]

    def digest(tensor: Any) -> str:
        buffer = model.buffers[tensor.buffer]
        if buffer.data is not None:
            return hashlib.sha256(bytes(buffer.data)).hexdigest()
        start = section.begin + buffer.offset
        return hashlib.sha256(memoryview(data)[start : start + buffer.size]).hexdigest()

    blocks, found = set(), Counter[tuple[Any, ...]]()
    for tensor in graph.tensors:
        if tensor.quantization is not None and tensor.quantization.details is not None:
            blocks.add(tensor.quantization.details.scales)
    for number, tensor in enumerate(graph.tensors):
        buffer = model.buffers[tensor.buffer]
        size = buffer.size or (0 if buffer.data is None else len(buffer.data))
        if size < _LARGE or number in blocks:
            continue
        scales = ""
        if tensor.quantization is not None and tensor.quantization.details is not None:
            scales = digest(graph.tensors[tensor.quantization.details.scales])
        elif tensor.quantization is not None and tensor.quantization.scale is not None:
            scales = hashlib.sha256(tensor.quantization.scale.tobytes()).hexdigest()
        shape = tuple(int(width) for width in tensor.shape)
        found[(int(tensor.type), shape, digest(tensor), scales)] += 1
    return found


def main() -> None:
    ours, theirs = (weights(Path(word)) for word in sys.argv[1:])
    different = [*(ours - theirs), *(theirs - ours)]
    print(json.dumps([f"type {kind} {list(shape)}" for kind, shape, *_ in different]))


if __name__ == "__main__":
    main()
