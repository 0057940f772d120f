"""A copy of an artifact's model with one more signature, by which it is judged.

What LiteRT-LM needs of a prompt is its cache, so the model's own signature for chunks of it gives
no logits; token by token they would take as many passes over the weights as there are tokens. The
copy has the artifact's graphs and weights as they are, and beside them a graph that gives the
logits of a chunk, over the same weights.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

from ai_edge_litert import schema_py_generated as schema

from phibuild.backends.litert.bundle import Section
from phibuild.backends.litert.graph import DECODE, add_scores
from phibuild.backends.litert.model import Graph, Model, StoredTensor
from phibuild.backends.litert.weights import SCALES
from phibuild.worker.architecture import Architecture
from phibuild.worker.protocol import WorkerError

_KINDS = {number: name for name, number in vars(schema.TensorType).items() if name.isupper()}


class StoredWeights:
    """The weights of a model that was read, as another of its graphs has them."""

    def __init__(self, model: Model) -> None:
        self._tensors = model.stored_tensors(DECODE)
        self._added: dict[str, int] = {}

    @property
    def context(self) -> int:
        """The tokens that the caches hold."""
        return int(self._tensors[f"{DECODE}_mask"].shape[-1])

    def matrix(self, graph: Graph, name: str) -> int:
        if name not in self._added:
            self._added[name] = self._matrix(graph, self._tensors[name], name)
        return self._added[name]

    def _matrix(self, graph: Graph, stored: StoredTensor, name: str) -> int:
        quantization = stored.quantization
        if quantization is not None and quantization.details is not None:
            scales = self._add(graph, self._tensors[name + SCALES], None)
            blocks = schema.BlockwiseQuantizationT(
                scales=scales, zeroPoints=-1, blockSize=quantization.details.blockSize
            )
            quantization = schema.QuantizationParametersT(
                detailsType=quantization.detailsType, details=blocks
            )
        tensor = self._add(graph, stored, quantization)
        if _KINDS[stored.type] == "FLOAT16":
            return graph.apply("DEQUANTIZE", (tensor,), graph.shape(tensor))
        return tensor

    def vector(self, graph: Graph, name: str) -> int:
        return self._add(graph, self._tensors[name], None)

    def _add(self, graph: Graph, stored: StoredTensor, quantization: object) -> int:
        name, kind = f"{graph.name}/{stored.name.decode()}", _KINDS[stored.type]
        return graph.tensor(name, tuple(stored.shape), kind, stored.buffer, quantization)


def copy_with_scores(path: Path, section: Section, arch: Architecture, copy: Path) -> None:
    """Write the model that is a section of a file, with the signature SCORES. Raises OSError or
    WorkerError."""
    with path.open("rb") as file, copy.open("wb") as written:
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
            model = Model.read(data[section.begin : section.begin + _head_bytes(data, section)], 0)
        first = model.weights_begin
        weights = StoredWeights(model)
        add_scores(model, arch, weights, weights.context)
        head, size = model.pack()
        written.write(head)
        written.truncate(size)
        written.seek(model.weights_begin)
        written.flush()
        start, done, total = section.begin + first, 0, section.end - section.begin - first
        while done < total:
            sent = os.sendfile(written.fileno(), file.fileno(), start + done, total - done)
            if not sent:
                raise WorkerError(f"{path.name} ends within its model")
            done += sent


def _head_bytes(data: mmap.mmap, section: Section) -> int:
    """Return the bytes before the first weight."""
    model = schema.Model.GetRootAs(data, section.begin)
    buffers = [model.Buffers(number) for number in range(model.BuffersLength())]
    offsets: list[int] = [buffer.Offset() for buffer in buffers]
    return min(offset for offset in offsets if offset > 1)
