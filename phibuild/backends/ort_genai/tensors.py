"""Initializers that are computed while they are written, slab by slab.

A checkpoint's weights are torch tensors mapped from its files. The model builder would turn all
of them to the I/O type, and quantize them, before it writes the first byte; these tensors hold a
view of the mapped weight and do the same to a few MiB of it at a time. The bytes are the
builder's: a block lies in one row of the checkpoint's weight, and rows are independent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnx_ir.tensor_adapters import to_torch_dtype
from onnxruntime.capi._pybind_state import quantize_matmul_4bits, quantize_matmul_8bits
from onnxruntime.quantization.neural_compressor.weight_only import (
    make_matmul_weight_only_node,
    pad_tensor,
    quant_tensor,
    quant_tensor_k_quant_cpu,
)

SLAB_BYTES = 16 << 20
"""Bytes of a slab in the I/O type."""

Array = NDArray[Any]
Progress = Callable[[int], None]
"""Called with the number of weights that have been written."""


class StreamedMatrix(ir.LazyTensor):  # type: ignore[misc]
    """A matrix of the checkpoint, cast to `dtype` while it is written."""

    __slots__ = ("_progress", "source")

    def __init__(
        self, source: torch.Tensor, dtype: ir.DataType, name: str, progress: Progress
    ) -> None:
        self.source = source
        self._progress = progress
        torch_dtype = to_torch_dtype(dtype)
        super().__init__(
            lambda: ir.tensor(source.to(torch_dtype).contiguous().numpy(), dtype=dtype, name=name),
            dtype,
            ir.Shape(source.shape),
            name=name,
        )

    def tofile(self, file: BinaryIO) -> None:
        dtype = to_torch_dtype(self.dtype)
        for rows in _slabs(self.source.shape[0], self.source.shape[1] * dtype.itemsize):
            slab = self.source[rows].to(dtype).contiguous()
            file.write(_bytes(slab.numpy()))
            self._progress(slab.numel())


@dataclass(frozen=True)
class Rounding:
    """How a product is quantized; the fields mean what they mean in `OrtGenaiOptions`."""

    bits: int
    block_size: int
    symmetric: bool
    algorithm: str

    @property
    def has_zero_points(self) -> bool:
        return self.algorithm == "k_quant" or not self.symmetric

    def suffixes(self) -> tuple[str, str, str]:
        """Return what the vendor appends to a weight's name: packed, scales, zero points."""
        if self.algorithm == "default":
            return f"_Q{self.bits}", "_scales", "_zero_points"
        return f"_Q{self.bits}G{self.block_size}", "_scale", "_zp"


@dataclass
class Blocks:
    """A quantized slab of N rows: packed [N, blocks, block bytes], scales [N, blocks], zero
    points [N, bytes]."""

    packed: Array
    scales: Array
    zero_points: Array | None


def quantize(matrix: Array, rounding: Rounding) -> Blocks:
    """Quantize `matrix` [K, N], in the I/O type and contiguous, as the vendor's tool does."""
    if rounding.algorithm == "default":
        return _default(matrix, rounding)
    return _neural_compressor(matrix, rounding)


def _default(matrix: Array, rounding: Rounding) -> Blocks:
    """As `DefaultWeightOnlyQuantizer.qbits_block_quant` of onnxruntime, format QOperator."""
    width, outputs = matrix.shape
    bits, block = rounding.bits, rounding.block_size
    blocks = -(-width // block)
    padded = pad_tensor(matrix, block, blocks)
    packed = np.zeros((outputs, blocks, block * bits // 8), np.uint8)
    zero_points = np.zeros((outputs, -(-blocks * bits // 8)), np.uint8)
    scales = np.zeros((outputs, blocks), matrix.dtype)
    kernel = quantize_matmul_4bits if bits == 4 else quantize_matmul_8bits
    kernel(packed, padded, scales, zero_points, block, outputs, width, rounding.symmetric)
    return Blocks(packed, scales, zero_points if rounding.has_zero_points else None)


def _neural_compressor(matrix: Array, rounding: Rounding) -> Blocks:
    """As `rtn_quantize` of onnxruntime's copy of Neural Compressor. The CPU form of k_quant is
    called by name: the vendor's takes a GPU where there is one, and rounds otherwise there."""
    block = rounding.block_size
    blocks = -(-matrix.shape[0] // block)
    rows = pad_tensor(matrix, block, blocks).T
    if rounding.algorithm == "k_quant":
        quantized, scale, zero_point = quant_tensor_k_quant_cpu(rows, rounding.bits, block)
    else:
        scheme = "sym" if rounding.symmetric else "asym"
        quantized, scale, zero_point = quant_tensor(rows, rounding.bits, block, scheme, "uint", 1)
    _, initializers = make_matmul_weight_only_node(
        node=onnx.helper.make_node("MatMul", ["input", "weight"], ["output"], name="product"),
        weight_shape=matrix.shape,
        num_bits=rounding.bits,
        group_size=block,
        k_blocks=blocks,
        q_weight=quantized.astype(np.uint8),
        scale=scale.astype(matrix.dtype),
        zero_point=zero_point if rounding.has_zero_points else None,
    )
    made = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in initializers}
    packed, scales, zero_points = ("weight" + suffix for suffix in rounding.suffixes())
    return Blocks(made[packed], made[scales], made.get(zero_points))


class QuantizedMatrix:
    """A product's weight [K, N], quantized when its packed bits are written; the scales and zero
    points are kept until they are written, which the file's order makes the next thing."""

    def __init__(self, weight: StreamedMatrix, rounding: Rounding) -> None:
        self._source = weight.source
        self._dtype = weight.dtype
        self._progress = weight._progress
        self._rounding = rounding
        self._kept: dict[str, list[Array]] = {}
        self.width, self.outputs = (int(size) for size in weight.source.shape)
        blocks = -(-self.width // rounding.block_size)
        bits = rounding.bits
        packed, scales, zero_points = (str(weight.name) + part for part in rounding.suffixes())
        shapes = {
            packed: (ir.DataType.UINT8, (self.outputs, blocks, rounding.block_size * bits // 8)),
            scales: (weight.dtype, (self.outputs, blocks)),
        }
        if rounding.has_zero_points:
            shapes[zero_points] = (ir.DataType.UINT8, (self.outputs, -(-blocks * bits // 8)))
        self.tensors = [
            _Part(self, part, dtype, shape, name)
            for part, (name, (dtype, shape)) in zip(
                ("packed", "scales", "zero_points"), shapes.items(), strict=False
            )
        ]

    def slabs(self) -> Iterator[Blocks]:
        """Yield the weight slab by slab of its N outputs."""
        dtype = to_torch_dtype(self._dtype)
        for columns in _slabs(self.outputs, self.width * dtype.itemsize):
            matrix = self._source[:, columns].to(dtype).contiguous().numpy()
            yield quantize(matrix, self._rounding)

    def write(self, part: str, file: BinaryIO) -> None:
        """Write "packed", "scales" or "zero_points"."""
        if part == "packed":
            self._kept = {"scales": [], "zero_points": []}
            for blocks in self.slabs():
                file.write(_bytes(blocks.packed))
                self._keep(blocks)
                self._progress(self.width * len(blocks.packed))
            return
        if part not in self._kept:
            self._kept = {"scales": [], "zero_points": []}
            for blocks in self.slabs():
                self._keep(blocks)
        for array in self._kept.pop(part):
            file.write(_bytes(array))

    def _keep(self, blocks: Blocks) -> None:
        self._kept["scales"].append(blocks.scales)
        if blocks.zero_points is not None:
            self._kept["zero_points"].append(blocks.zero_points)

    def array(self, part: str) -> Array:
        """Return one part whole."""
        return np.concatenate([getattr(blocks, part) for blocks in self.slabs()])


class _Part(ir.LazyTensor):  # type: ignore[misc]
    __slots__ = ("_matrix", "_part")

    def __init__(
        self,
        matrix: QuantizedMatrix,
        part: str,
        dtype: ir.DataType,
        shape: tuple[int, ...],
        name: str,
    ) -> None:
        self._matrix = matrix
        self._part = part
        super().__init__(
            lambda: ir.tensor(matrix.array(part), name=name), dtype, ir.Shape(shape), name=name
        )

    def tofile(self, file: BinaryIO) -> None:
        self._matrix.write(self._part, file)


def _bytes(array: Array) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _slabs(count: int, item_bytes: int) -> Iterator[slice]:
    """Yield slices of 0..count that hold about SLAB_BYTES, and at least one item, each."""
    step = max(1, SLAB_BYTES // item_bytes)
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))
