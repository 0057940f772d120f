"""A checkpoint's tensors in an OpenVINO graph: nodes as optimum-intel and nncf leave them.

Matrices are there by type and shape alone: their constants share one block of zeros, and their
bytes are written to the .bin afterwards (files.py). Norms are small and hold their values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import openvino as ov
from openvino._offline_transformations import compress_model_transformation

from phibuild.backends.openvino.encode import encode
from phibuild.backends.openvino.layout import ROW, Part, encoding
from phibuild.backends.openvino.nodes import Output, named, opset
from phibuild.worker.architecture import Architecture
from phibuild.worker.floats import NUMPY_TYPES
from phibuild.worker.requests import Options
from phibuild.worker.rows import Rows
from phibuild.worker.safetensors import TensorInfo

_ITEMS = {"f16": np.float16, "f32": np.float32, "i8": np.int8}
"""What NumPy holds each element type in; two of 4 bits share a byte, as u8 is one."""


class Weights:
    """The outputs of a variant's weights, all f32. `options` are the variant's.

    What is not stored as f32 is followed by a Convert to f32 that is marked as decompression where
    the exporter's trace has one: plugins keep such a constant in its own type. The model must not
    outlive this object.
    """

    def __init__(
        self, tensors: Mapping[str, TensorInfo], arch: Architecture, options: Options
    ) -> None:
        self.names: dict[str, list[str]] = {}
        """By tensor: the constants that hold the parts of its encoding, to be written."""
        self._tensors = tensors
        self._options = options
        self._decompressions = _decompression_nodes(sum(1 for _ in arch.tensors()))
        largest = max(math.prod(shape) for _, shape in arch.tensors())
        self._zeros = np.zeros(4 * largest, np.uint8)  # read only: takes no memory

    def matrix(self, name: str, convert_name: str) -> Output:
        """Return the output of a matrix, [out, in]; the constant of its weights is `self.<name>`.

        `convert_name` is that of the Convert which a trace of a bf16 or fp16 checkpoint has.
        """
        shape = self._tensors[name].shape
        stored = encoding(name, shape, self._options)
        constants = [
            self._placeholder(f"self.{name}{part.suffix}", part) for part in stored.parts(shape)
        ]
        self.names[name] = [constant.get_friendly_name() for constant in constants]
        if not stored.quantized:
            return self._decompressed(constants[0], convert_name)
        port = 0 if name == "model.embed_tokens.weight" else 1  # of Gather, of MatMul
        weights = _dequantized(f"self.{name}", constants, port)
        if stored.group_size != ROW:
            weights = opset.reshape(weights, np.asarray(shape, np.int64), False)
        if self._tensors[name].dtype == "F32":  # no Convert in the trace: nncf adds one
            return named(opset.convert(weights, "f32"), f"self.{name}/fq_weights_{port}/convert")
        return self._decompressed(weights, convert_name)

    def vector(self, name: str) -> Output:
        """Return a norm's weights as [1, 1, width]. Raises WorkerError if they do not fit into
        f16."""
        tensor = self._tensors[name]
        values = np.fromfile(
            tensor.path, NUMPY_TYPES[tensor.dtype], tensor.parameters, offset=tensor.offset
        )
        rows = Rows(name, tensor.dtype, values.reshape(1, 1, -1))
        (stored,) = encode(rows, encoding(name, tensor.shape, self._options))
        constant = named(opset.constant(stored), f"self.{name}")
        return self._decompressed(constant, f"self.{name}/Convert")

    def _placeholder(self, name: str, part: Part) -> ov.Node:
        zeros = self._zeros[: part.nbytes].view(_ITEMS.get(part.kind, np.uint8))
        tensor = ov.Tensor(zeros, ov.Shape(part.shape), getattr(ov.Type, part.kind))
        return named(ov.op.Constant(tensor, shared_memory=True), name)

    def _decompressed(self, node: ov.Node, name: str) -> Output:
        if node.get_element_type() == ov.Type.f32:
            return node.output(0)
        convert = self._decompressions.pop()
        convert.set_arguments([node.output(0)])
        convert.constructor_validate_and_infer_types()
        convert.output(0).get_tensor().set_names(set())
        return named(convert, name).output(0)


def _dequantized(name: str, constants: list[ov.Node], port: int) -> ov.Node:
    """Return (weights - zero point) * scale in f16, as nodes that plugins look for; `constants`
    are the parts of integers, `port` the input that nncf found the weights at."""
    weights, *zero_point, scale = constants
    weights = opset.convert(weights, "f16")
    if zero_point:
        zero = opset.convert(zero_point[0], "f16")
        weights = opset.subtract(weights, zero, name=f"{name}/zero_point/subtract")
    return opset.multiply(weights, scale, name=f"{name}/fq_weights_{port}")


def _decompression_nodes(count: int) -> list[ov.Node]:
    """Return Convert nodes to f32 that are marked as decompression.

    The mark is a C++ attribute that Python cannot set. OpenVINO's own fp16 compression makes
    nodes that have it: here of `count` placeholders, whose inputs are replaced afterwards.
    """
    placeholders = [opset.result(opset.constant(np.zeros(1, np.float32))) for _ in range(count)]
    model = ov.Model(placeholders, [])
    compress_model_transformation(model)
    return [result.input_value(0).get_node() for result in model.get_results()]
