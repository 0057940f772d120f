"""One pass over a checkpoint, several MLX artifacts: blocks of rows, each to its known place.

A block is read once, then cast or quantized for each variant and written where its header says.
Rows are independent in every variant, so the bytes depend neither on the blocks nor on the
threads, and memory holds one block per thread whatever the size of the model.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from phibuild.backends.mlx.blocks import Block
from phibuild.backends.mlx.casts import NUMPY_TYPES
from phibuild.backends.mlx.layout import (
    FLOAT_TYPES,
    matrix_quantization,
    module_order,
    stored_arrays,
)
from phibuild.backends.mlx.malloc import keep_freed
from phibuild.worker.architecture import Architecture
from phibuild.worker.protocol import WorkerError
from phibuild.worker.safetensors import ITEM_BYTES, SafetensorsWriter, TensorInfo, read_checkpoint

CHUNK_BYTES = 8 << 20  # of the checkpoint: what a thread does at a time
BLOCK_WEIGHTS = 1 << 18  # as float32 they stay in a processor's cache while they are worked on
_KEPT_BYTES = 32 << 20  # of a thread: more than a block and all that is made of it
MAX_SHARD_BYTES = 5 << 30  # mlx_lm.utils.MAX_FILE_SIZE_GB


class Output:
    """One artifact's weights while they are written. `error` is set by the first failure, after
    which the artifact gets no more of them and the others go on."""

    def __init__(self, folder: Path, arch: Architecture, options: Mapping[str, Any]) -> None:
        self._dtype = FLOAT_TYPES[options["dtype"]]
        self.error: Exception | None = None
        self._stored = {
            name: stored_arrays(name, shape, arch.layers, options)
            for name, shape in module_order(arch)
        }
        self._quantization = {
            name: matrix_quantization(name, arch.layers, options)
            for name, arrays in self._stored.items()
            if len(arrays) > 1
        }
        self._writer = SafetensorsWriter(
            folder,
            [
                (array.name, array.dtype, array.shape)
                for arrays in self._stored.values()
                for array in arrays
            ],
            metadata={"format": "mlx"},
            max_shard_bytes=MAX_SHARD_BYTES,
            index=True,
        )

    def write(self, name: str, block: Block, row: int) -> None:
        """Store a block of the tensor `name`, from its row `row` on."""
        if self.error is not None:
            return
        try:
            how = self._quantization.get(name)
            parts = block.quantized(self._dtype, how) if how else (block.as_type(self._dtype),)
            for place, part in zip(self._stored[name], parts, strict=True):
                self._writer.write(place.name, part.data, row * (part.nbytes // len(part)))
        except Exception as error:  # a full disk, a refused quantization: this artifact's alone
            self.error = error

    def close(self) -> None:
        """Wait until all is written; again is fine."""
        try:
            self._writer.finish()
        except OSError as error:
            self.error = self.error or error
        self._writer.close()


@dataclass(frozen=True)
class _Rows:
    tensor: TensorInfo
    start: int
    stop: int

    def split(self, step: int) -> Iterator[_Rows]:
        for start in range(self.start, self.stop, step):
            yield _Rows(self.tensor, start, min(start + step, self.stop))


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
    keep_freed(_KEPT_BYTES)
    tensors = _checked(read_checkpoint(source), arch)
    files = {path: os.open(path, os.O_RDONLY) for path in {t.path for t in tensors}}
    jobs = [rows for tensor in tensors for rows in _chunks(tensor)]
    total, done = sum(tensor.nbytes for tensor in tensors), 0

    def run(chunk: _Rows) -> int:
        tensor = chunk.tensor
        width = math.prod(tensor.shape[1:])
        for rows in chunk.split(max(1, BLOCK_WEIGHTS // width)):
            block = _read(files[tensor.path], rows)
            for output in outputs:
                output.write(tensor.name, block, rows.start)
        return (chunk.stop - chunk.start) * width * ITEM_BYTES[tensor.dtype]

    try:
        with ThreadPoolExecutor(threads) as executor:
            try:
                for future in as_completed([executor.submit(run, chunk) for chunk in jobs]):
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
        if tensor.shape != shape or tensor.dtype not in NUMPY_TYPES:
            raise WorkerError(
                f"tensor {name} is {tensor.dtype} {list(tensor.shape)} in the checkpoint; "
                f"this model needs {list(shape)} in {', '.join(NUMPY_TYPES)}"
            )
        found.append(tensor)
    return found


def _chunks(tensor: TensorInfo) -> Iterator[_Rows]:
    rows = tensor.shape[0]
    return _Rows(tensor, 0, rows).split(max(1, CHUNK_BYTES * rows // tensor.nbytes))


def _read(descriptor: int, rows: _Rows) -> Block:
    tensor = rows.tensor
    shape = (rows.stop - rows.start, *tensor.shape[1:])
    row_bytes = tensor.nbytes // tensor.shape[0]
    buffer = np.empty(shape, NUMPY_TYPES[tensor.dtype])
    view = buffer.data.cast("B")
    position = tensor.offset + rows.start * row_bytes
    while view.nbytes:
        count = os.preadv(descriptor, [view], position)
        if not count:
            raise OSError(f"{tensor.path.name} ends within tensor {tensor.name}")
        view, position = view[count:], position + count
    return Block(tensor.name, buffer, tensor.dtype)
