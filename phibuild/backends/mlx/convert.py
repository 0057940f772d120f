"""One pass over a checkpoint, several MLX artifacts: chunks of rows, each to its known place.

A chunk is read once, then cast or quantized for each variant and written where its header says.
Rows are independent in every variant, so the bytes depend neither on the chunks nor on the
threads, and memory holds one chunk per thread whatever the size of the model.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from phibuild.architecture import Architecture
from phibuild.backends.mlx.layout import FLOAT_TYPES, module_order, quantization, stored_arrays
from phibuild.safetensors_io import ITEM_BYTES, SafetensorsWriter, TensorInfo, read_checkpoint
from phibuild.worker import WorkerError

CHUNK_BYTES = 8 << 20  # of the checkpoint
MAX_SHARD_BYTES = 5 << 30  # mlx_lm.utils.MAX_FILE_SIZE_GB
_READ_AS = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32}
_MX_TYPES = {"F16": mx.float16, "BF16": mx.bfloat16, "F32": mx.float32}


class Output:
    """One artifact's weights while they are written. `error` is set by the first failure, after
    which the artifact gets no more of them and the others go on."""

    def __init__(self, folder: Path, arch: Architecture, options: Mapping[str, Any]) -> None:
        self._options = options
        self._dtype = _MX_TYPES[FLOAT_TYPES[options["dtype"]]]
        self._quantization = quantization(options)
        self.error: Exception | None = None
        arrays = [
            array
            for name, shape in module_order(arch)
            for array in stored_arrays(name, shape, options)
        ]
        self._writer = SafetensorsWriter(
            folder,
            [(array.name, array.dtype, array.shape) for array in arrays],
            metadata={"format": "mlx"},
            max_shard_bytes=MAX_SHARD_BYTES,
            index=True,
        )

    def write(self, tensor: TensorInfo, chunk: mx.array, row: int, stream: mx.Stream) -> None:
        """Store rows of `tensor` from `row` on; `chunk` has the checkpoint's type."""
        if self.error is not None:
            return
        try:
            weights = chunk.astype(self._dtype, stream=stream)
            stored: Sequence[mx.array] = (weights,)
            if self._quantization is not None and weights.ndim == 2:
                stored = mx.quantize(
                    weights,
                    group_size=self._quantization.group_size,
                    bits=self._quantization.bits,
                    mode=self._quantization.mode,
                    stream=stream,
                )
            mx.eval(*stored)
            places = stored_arrays(tensor.name, tensor.shape, self._options)
            for place, array in zip(places, stored, strict=True):
                row_bytes = array.nbytes // array.shape[0]
                data = array.view(mx.uint8, stream=stream)
                self._writer.write(place.name, memoryview(data), row * row_bytes)
        except Exception as error:  # a full disk, a refused quantization: this artifact's alone
            self.error = error

    def close(self) -> None:
        self._writer.close()


@dataclass(frozen=True)
class _Rows:
    tensor: TensorInfo
    start: int
    stop: int


def convert(
    source: Path,
    arch: Architecture,
    outputs: Sequence[Output],
    threads: int,
    progress: Callable[[float], None],
) -> None:
    """Write the weights of the checkpoint `source` to all outputs.

    `progress` is told the share that is done, 0 to 1. Raises WorkerError if a tensor is missing
    or of another shape or type than the architecture's, OSError if the checkpoint cannot be
    read; what goes wrong with one output is kept in its `error`.
    """
    mx.set_cache_limit(0)  # freed buffers go back: chunks of many sizes would pile up
    tensors = _checked(read_checkpoint(source), arch)
    files = {path: os.open(path, os.O_RDONLY) for path in {t.path for t in tensors}}
    jobs = [rows for tensor in tensors for rows in _chunks(tensor)]
    total, done = sum(tensor.nbytes for tensor in tensors), 0
    local = threading.local()

    def run(rows: _Rows) -> int:
        # A stream of MLX belongs to the thread that made it. The CPU's kernels give the same
        # bytes on every machine.
        if not hasattr(local, "stream"):
            local.stream = mx.new_stream(mx.cpu)
        chunk, nbytes = _read(files[rows.tensor.path], rows, local.stream)
        for output in outputs:
            output.write(rows.tensor, chunk, rows.start, local.stream)
        return nbytes

    try:
        with ThreadPoolExecutor(threads) as executor:
            try:
                for future in as_completed([executor.submit(run, rows) for rows in jobs]):
                    before, done = done, done + future.result()
                    if done * 100 // total != before * 100 // total:
                        progress(done / total)
            except BaseException:
                executor.shutdown(cancel_futures=True)
                raise
    finally:
        for descriptor in files.values():
            os.close(descriptor)


def _checked(tensors: Mapping[str, TensorInfo], arch: Architecture) -> list[TensorInfo]:
    """Return the tensors of the architecture. Others are left out: a tied model's checkpoint may
    hold lm_head all the same, which mlx-lm refuses."""
    found = []
    for name, shape in module_order(arch):
        tensor = tensors.get(name)
        if tensor is None:
            raise WorkerError(f"the checkpoint has no tensor {name}")
        if tensor.shape != shape or tensor.dtype not in _READ_AS:
            raise WorkerError(
                f"tensor {name} is {tensor.dtype} {list(tensor.shape)} in the checkpoint; "
                f"this model needs {list(shape)} in {', '.join(_READ_AS)}"
            )
        found.append(tensor)
    return found


def _chunks(tensor: TensorInfo) -> Iterator[_Rows]:
    rows = tensor.shape[0]
    step = max(1, CHUNK_BYTES * rows // tensor.nbytes)
    for start in range(0, rows, step):
        yield _Rows(tensor, start, min(start + step, rows))


def _read(descriptor: int, rows: _Rows, stream: mx.Stream) -> tuple[mx.array, int]:
    """Return the rows as an array of the checkpoint's type, and the bytes that were read."""
    tensor = rows.tensor
    row_bytes = math.prod(tensor.shape[1:]) * ITEM_BYTES[tensor.dtype]
    buffer = np.empty((rows.stop - rows.start) * row_bytes, np.uint8)
    view = buffer.data
    position = tensor.offset + rows.start * row_bytes
    while view.nbytes:
        count = os.preadv(descriptor, [view], position)
        if not count:
            raise OSError(f"{tensor.path.name} ends within tensor {tensor.name}")
        view, position = view[count:], position + count
    shape = (rows.stop - rows.start, *tensor.shape[1:])
    chunk = mx.array(buffer.view(_READ_AS[tensor.dtype]).reshape(shape))
    if tensor.dtype == "BF16":  # numpy has no such type
        chunk = chunk.view(mx.bfloat16, stream=stream)
    return chunk, buffer.nbytes
