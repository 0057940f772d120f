"""A checkpoint's tensors in a LiteRT model: by type and shape alone, their bytes are to come.

What is not fp32 is there as ai-edge-quantizer leaves it: integers with their quantization, which
kernels read as they are, fp16 behind a DEQUANTIZE.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from phibuild.backends.litert.graph import DECODE
from phibuild.backends.litert.layout import encoding
from phibuild.backends.litert.model import Graph, Model, Place
from phibuild.worker.encodings import Encoding
from phibuild.worker.floats import NUMPY_TYPES, widen
from phibuild.worker.requests import Options
from phibuild.worker.safetensors import TensorInfo

SCALES = "_scales"
"""What follows a tensor's name in that of the scales of its blocks."""


class PlacedWeights:
    """The weights of a variant, whose `options` these are: `places` of the numbers, `scale_places`
    of the scales of blocks, by tensor, and the scales of rows, which the flatbuffer itself holds:
    `row_scales`, to be filled in before it is packed for good."""

    def __init__(self, model: Model, tensors: Mapping[str, TensorInfo], options: Options) -> None:
        self._model, self._tensors, self._options = model, tensors, options
        self.places: dict[str, Place] = {}
        self.scale_places: dict[str, Place] = {}
        self.row_scales: dict[str, NDArray[np.float32]] = {}
        self._in_graph: dict[tuple[str, str], int] = {}
        for name, tensor in tensors.items():
            if len(tensor.shape) == 2:
                self._lay_out(name, tensor.shape)

    def _lay_out(self, name: str, shape: tuple[int, ...]) -> None:
        how = self.encoding(name)
        self.places[name] = self._model.place(how.data_bytes(shape))
        if how.kind == "INT4":
            self.scale_places[name] = self._model.place(how.scale_bytes(shape))
        if how.kind == "INT8":
            self.row_scales[name] = np.ones(shape[0], np.float32)

    def encoding(self, name: str) -> Encoding:
        return encoding(name, self._tensors[name].shape, self._options)

    def matrix(self, graph: Graph, name: str) -> int:
        """Return a matrix in a graph; in each it is there once."""
        key = (graph.name, name)
        if key not in self._in_graph:
            self._in_graph[key] = self._add(graph, name)
        return self._in_graph[key]

    def _add(self, graph: Graph, name: str) -> int:
        how, shape, own = self.encoding(name), self._tensors[name].shape, _name(graph, name)
        quantization: object = None
        if how.kind == "INT8":
            quantization = schema.QuantizationParametersT(
                scale=self.row_scales[name],
                zeroPoint=np.zeros(shape[0], np.int64),
                quantizedDimension=0,
            )
        if how.kind == "INT4":
            buffer = self.scale_places[name].buffer
            blocks = (shape[0], shape[1] // how.group_size)
            scales = graph.tensor(own + SCALES, blocks, "FLOAT16", buffer)
            quantization = schema.QuantizationParametersT(
                detailsType=schema.QuantizationDetails.BlockwiseQuantization,
                details=schema.BlockwiseQuantizationT(
                    scales=scales, zeroPoints=-1, blockSize=how.group_size
                ),
            )
        tensor = graph.tensor(own, shape, how.kind, self.places[name].buffer, quantization)
        if how.kind == "FLOAT16":
            return graph.apply("DEQUANTIZE", (tensor,), shape)
        return tensor

    def vector(self, graph: Graph, name: str) -> int:
        """Return a norm's weights as [1, 1, width]."""
        info = self._tensors[name]
        stored = np.fromfile(
            info.path, NUMPY_TYPES[info.dtype], info.parameters, offset=info.offset
        )
        values = widen(stored, info.dtype).reshape(1, 1, -1)
        buffer = self._model.constant(values.tobytes())
        return graph.tensor(_name(graph, name), values.shape, buffer=buffer)


def _name(graph: Graph, name: str) -> str:
    """Return what a weight is called in a graph: in `decode` as in the checkpoint, since a name may
    be there once in a model."""
    return name if graph.name == DECODE else f"{graph.name}/{name}"
