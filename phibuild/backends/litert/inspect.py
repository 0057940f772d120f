"""What a LiteRT model on disk holds: the types of its weights, by the schema's own reader.

Nothing of the writer is used: every large constant of the graph that gives logits is a weight, so
that one which should not be there shows.
"""

from __future__ import annotations

import math
import mmap
from collections import Counter
from pathlib import Path
from typing import Any

from ai_edge_litert import schema_py_generated as schema

from phibuild.backends.litert.bundle import MODEL as MODEL_SECTION
from phibuild.backends.litert.bundle import Section, read_sections
from phibuild.backends.litert.files import BUNDLE, MODEL
from phibuild.worker.protocol import Contents

_SMALL = 1024  # constants below are shapes, axes and frequencies
_KINDS = {number: name for name, number in vars(schema.TensorType).items() if name.isupper()}
_BITS = {"FLOAT32": 32, "FLOAT16": 16, "INT8": 8, "INT4": 4}


def model_section(folder: Path) -> tuple[Path, Section]:
    """Return the file of an artifact and where in it the model lies."""
    path = folder / BUNDLE
    if path.is_file():
        return path, read_sections(path)[MODEL_SECTION]
    path = folder / MODEL
    return path, Section(0, path.stat().st_size)


def inspect(folder: Path) -> Contents:
    """Return what an artifact's model holds: a weight's scales are its bytes, too."""
    path, section = model_section(folder)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
        model = schema.Model.GetRootAs(data, section.begin)
        types, nbytes = _weights(model)
        del model  # it holds the map
    return {"types": dict(types), "weight_bytes": nbytes}


def _weights(model: Any) -> tuple[Counter[str], int]:
    types: Counter[str] = Counter()
    nbytes = sum(_scale_bytes(model.Subgraphs(one)) for one in range(model.SubgraphsLength()))
    graph = model.Subgraphs(model.SubgraphsLength() - 1)  # decode
    scales = set()
    tensors = [graph.Tensors(number) for number in range(graph.TensorsLength())]
    for tensor in tensors:
        quantization = tensor.Quantization()
        if quantization is not None and quantization.DetailsType():
            blocks = schema.BlockwiseQuantization()
            table = quantization.Details()
            blocks.Init(table.Bytes, table.Pos)
            scales.add(blocks.Scales())
    for number, tensor in enumerate(tensors):
        buffer = model.Buffers(tensor.Buffer())
        shape = tensor.ShapeAsNumpy() if tensor.ShapeLength() else ()
        count, kind = math.prod(int(size) for size in shape), _KINDS[tensor.Type()]
        if not (buffer.Size() or buffer.DataLength()) or kind not in _BITS:
            continue
        stored = int(buffer.Size() or buffer.DataLength())
        if number in scales:
            nbytes += stored
        elif count >= _SMALL or (tensor.Name() or b"").endswith(b".weight"):
            types[kind] += count
            nbytes += stored
    return types, nbytes


def _scale_bytes(graph: Any) -> int:
    """Return the bytes of scales and zero points that a graph itself holds: of rows."""
    nbytes = 0
    for number in range(graph.TensorsLength()):
        quantization = graph.Tensors(number).Quantization()
        if quantization is not None:
            nbytes += 4 * quantization.ScaleLength() + 8 * quantization.ZeroPointLength()
    return nbytes
