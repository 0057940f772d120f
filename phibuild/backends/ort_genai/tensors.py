"""Initializers that are computed while they are written, slab by slab.

A checkpoint's weights are torch tensors mapped from its files. The model builder would turn all
of them to the I/O type, and quantize them, before it writes the first byte; these tensors hold a
view of the mapped weight and do the same to a few MiB of it at a time. The bytes are the
builder's: blocks are independent, and no slab cuts one.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO, TypeVar

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import to_torch_dtype

from phibuild.backends.ort_genai.coded import CodedProduct
from phibuild.backends.ort_genai.rounding import Array, Blocks, Rounding, quantize
from phibuild.worker.protocol import WorkerError

SLAB_BYTES = 2 << 20
"""Bytes of a slab in the I/O type: a core's cache holds it while it is worked on."""
_TURNED_ROWS = 32
"""Least rows of a slab that are columns of the checkpoint's weight: a cache line of 16-bit ones."""

Made = TypeVar("Made")


@dataclass(frozen=True)
class Streaming:
    """How weights are written: `threads` slabs at a time; `progress` is called with the number
    of weights that have been written."""

    threads: int
    progress: Callable[[int], None]

    def in_order(
        self, make: Callable[[slice], Made], slabs: Iterator[slice]
    ) -> Iterator[tuple[slice, Made]]:
        """Yield each slab with what is made of it; one more than threads is held at most."""
        waiting: deque[tuple[slice, Future[Made]]] = deque()
        with ThreadPoolExecutor(self.threads) as pool:
            for slab in slabs:
                waiting.append((slab, pool.submit(make, slab)))
                if len(waiting) > self.threads:
                    done, future = waiting.popleft()
                    yield done, future.result()
            for done, future in waiting:
                yield done, future.result()


class StreamedMatrix(ir.LazyTensor):  # type: ignore[misc]
    """A matrix of the checkpoint, cast to `dtype` while it is written."""

    __slots__ = ("source", "streaming")

    def __init__(
        self, source: torch.Tensor, dtype: ir.DataType, name: str, streaming: Streaming
    ) -> None:
        self.source = source
        self.streaming = streaming
        super().__init__(
            lambda: ir.tensor(self.rows(slice(None)).numpy(), dtype=dtype, name=name),
            dtype,
            ir.Shape(source.shape),
            name=name,
        )

    def rows(self, rows: slice) -> torch.Tensor:
        """Return rows in the I/O type, contiguous."""
        slab = self.source[rows]
        if not slab.is_contiguous():
            # Columns of the checkpoint's weight: torch turns a whole matrix by tiles, which a
            # cast or a copy of a part of one does not.
            slab = slab.T.contiguous().T.contiguous()
        return checked_cast(slab, to_torch_dtype(self.dtype), str(self.name))

    def columns(self, columns: slice) -> torch.Tensor:
        """Return the transpose of columns in the I/O type, contiguous."""
        turned = self.source[:, columns].T
        return checked_cast(turned, to_torch_dtype(self.dtype), str(self.name)).contiguous()

    def tofile(self, file: BinaryIO) -> None:
        height, width = self.source.shape
        least = 1 if self.source.is_contiguous() else _TURNED_ROWS
        slabs = _slabs(height, int(width * self.dtype.itemsize), least)
        for _, slab in self.streaming.in_order(self.rows, slabs):
            file.write(_bytes(slab.numpy()))
            self.streaming.progress(slab.numel())


def checked_cast(weights: torch.Tensor, dtype: torch.dtype, name: str) -> torch.Tensor:
    """Return weights in another type. Raises WorkerError if a finite one becomes infinite."""
    cast = weights.to(dtype)
    if dtype == torch.float16 and weights.dtype != dtype:
        extremes = torch.stack(torch.aminmax(cast))
        if (
            not torch.isfinite(extremes).all()
            and (torch.isfinite(weights) & ~torch.isfinite(cast)).any()
        ):
            raise WorkerError(
                f"{name} has weights beyond 65,504, the range of the graph's fp16; "
                "provider cpu keeps them in fp32"
            )
    return cast


class QuantizedMatrix:
    """A product's weight [K, N], quantized when its packed bits are written; the scales and zero
    points are kept until they are written, which the file's order makes the next thing."""

    def __init__(
        self, weight: StreamedMatrix, rounding: Rounding, coded: CodedProduct | None = None
    ) -> None:
        self._weight, self._coded = weight, coded
        self.rounding = rounding
        self._kept: dict[str, list[Array]] = {}
        self.width, self.outputs = (int(size) for size in weight.source.shape)
        bits, block, qdq = rounding.bits, rounding.block_size, rounding.qdq
        blocks = -(-self.width // block)
        shape: tuple[int, ...]
        if qdq:
            kind = ir.DataType.INT4 if rounding.symmetric else ir.DataType.UINT4
            shape, scales_shape = (self.width, self.outputs), (blocks, self.outputs)
            zero_points_shape = scales_shape
        else:
            kind = ir.DataType.UINT8
            shape, scales_shape = (self.outputs, blocks, block * bits // 8), (self.outputs, blocks)
            zero_points_shape = (self.outputs, -(-blocks * bits // 8))
        parts = {
            "packed": (kind, shape),
            "scales": (weight.dtype, scales_shape),
            "zero_points": (kind, zero_points_shape),
        }
        if not rounding.has_zero_points:
            del parts["zero_points"]
        self.tensors = [
            _Part(self, part, dtype, shape, f"{weight.name}{suffix}")
            for (part, (dtype, shape)), suffix in zip(
                parts.items(), rounding.suffixes(), strict=False
            )
        ]

    def _slabs(self) -> Iterator[slice]:
        """Yield slices of the N outputs, or of K for DequantizeLinear: pairs of blocks, whose zero
        points are whole bytes."""
        item = int(self._weight.dtype.itemsize)
        if not self.rounding.qdq:
            return _slabs(self.outputs, self.width * item)
        return _slabs(self.width, self.outputs * item, 2 * self.rounding.block_size)

    def _quantize(self, slab: slice) -> Blocks:
        weight, rounding = self._weight, self.rounding
        if self._coded is not None:
            return self._coded.blocks(slab)
        values = weight.rows(slab) if rounding.qdq else weight.columns(slab)
        if not torch.isfinite(torch.stack(torch.aminmax(values))).all():
            raise WorkerError(f"{weight.name} holds NaN or infinity, for which there are no codes")
        return quantize(values, rounding)

    def write(self, part: str, file: BinaryIO) -> None:
        """Write "packed", "scales" or "zero_points"."""
        if part == "packed" or part not in self._kept:
            self._kept = {"scales": [], "zero_points": []}
            across = self.width if not self.rounding.qdq else self.outputs
            streaming = self._weight.streaming
            for slab, blocks in streaming.in_order(self._quantize, self._slabs()):
                if part == "packed":
                    file.write(_bytes(blocks.packed))
                    streaming.progress(across * (slab.stop - slab.start))
                self._kept["scales"].append(blocks.scales)
                if blocks.zero_points is not None:
                    self._kept["zero_points"].append(blocks.zero_points)
        if part != "packed":
            for array in self._kept.pop(part):
                file.write(_bytes(array))


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
        super().__init__(self._whole, dtype, ir.Shape(shape), name=name)

    def _whole(self) -> ir.TensorProtocol:
        file = io.BytesIO()
        self.tofile(file)
        array = np.frombuffer(file.getbuffer(), np.uint8)
        if self.dtype.bitwidth < 8:
            return ir.PackedTensor(array, self.dtype, shape=self.shape, name=self.name)
        whole = array.view(self.dtype.numpy()).reshape(self.shape.numpy())
        return ir.tensor(whole, dtype=self.dtype, name=self.name)

    def tofile(self, file: BinaryIO) -> None:
        self._matrix.write(self._part, file)


def _bytes(array: Array) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _slabs(count: int, item_bytes: int, multiple: int = 1) -> Iterator[slice]:
    """Yield slices of 0..count that hold about SLAB_BYTES each, and a multiple of items."""
    step = max(1, SLAB_BYTES // (item_bytes * multiple)) * multiple
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))
