"""One pass over a checkpoint, several IRs: chunks of rows, each to its known place.

A chunk is read and widened once, then stored for each variant. Memory holds a few chunks of each
thread, whatever the size of the model.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from phibuild.backends.openvino.compression import note_compression
from phibuild.backends.openvino.encode import READ_AS, Rows, encoding
from phibuild.backends.openvino.files import IrFiles
from phibuild.backends.openvino.inspect import MODEL_XML
from phibuild.backends.openvino.ir import build_model
from phibuild.backends.openvino.nodes import name_all
from phibuild.backends.openvino.weights import Weights
from phibuild.worker.architecture import Architecture
from phibuild.worker.protocol import WorkerError
from phibuild.worker.safetensors import TensorInfo, read_checkpoint

# Activations on GPUs are fp16; the plugin divides them by this so that they stay in range
# (the value that optimum-intel sets for text generation).
_ACTIVATIONS_SCALE_FACTOR = "8.0"

_CHUNK = 1 << 17  # weights: a chunk's arrays fit into a core's cache
_JOB = 1 << 22  # weights that a thread takes at a time


class Output:
    """One variant's IR while it is written. `error` is set by the first failure, after which it
    gets no more weights and the others go on."""

    def __init__(
        self,
        folder: Path,
        tensors: Mapping[str, TensorInfo],
        arch: Architecture,
        options: Mapping[str, Any],
    ) -> None:
        self.error: Exception | None = None
        self._options = options
        weights = Weights(tensors, arch, options)
        model = build_model(arch, weights)
        model.set_rt_info(
            _ACTIVATIONS_SCALE_FACTOR, ["runtime_options", "ACTIVATIONS_SCALE_FACTOR"]
        )
        if options["mode"].startswith("int"):
            note_compression(model, options)
        else:
            model.set_rt_info("f16", ["runtime_options", "KV_CACHE_PRECISION"])
        name_all(model)
        self._names = weights.names
        streamed = {name for names in self._names.values() for name in names}
        self._files = IrFiles(model, folder / MODEL_XML, streamed)

    def write(self, tensor: TensorInfo, rows: Rows, start: int) -> None:
        """Store `rows` of a matrix, from row `start` on."""
        if self.error is not None:
            return
        try:
            parts = encoding(tensor.name, self._options).encode(rows)
            for name, data in zip(self._names[tensor.name], parts, strict=True):
                self._files.write(name, data, start, tensor.shape[0])
        except Exception as error:  # a weight that does not fit, a full disk: this IR's alone
            self.error = error

    def close(self) -> None:
        """Wait until all is written, and close the files."""
        try:
            self._files.finish()
        except OSError as error:
            self.error = self.error or error
        self._files.close()


@dataclass(frozen=True)
class _Job:
    tensor: TensorInfo
    start: int
    stop: int


def read_tensors(source: Path, arch: Architecture) -> dict[str, TensorInfo]:
    """Return the tensors of the architecture in the checkpoint `source`, by name. Raises
    WorkerError if one is missing or of another shape or type."""
    tensors = read_checkpoint(source)
    found = {}
    for name, shape in arch.tensors():
        tensor = tensors.get(name)
        if tensor is None:
            raise WorkerError(f"the checkpoint has no tensor {name}")
        if tensor.shape != shape or tensor.dtype not in READ_AS:
            raise WorkerError(
                f"tensor {name} is {tensor.dtype} {list(tensor.shape)} in the checkpoint; "
                f"this model needs {list(shape)} in {', '.join(READ_AS)}"
            )
        found[name] = tensor
    return found


def write_matrices(
    tensors: Mapping[str, TensorInfo],
    outputs: Sequence[Output],
    threads: int,
    progress: Callable[[float], None],
) -> None:
    """Write the matrices among `tensors` to all outputs, by `threads` threads.

    `progress` is told the share that is done, 0 to 1. Raises OSError if the checkpoint cannot be
    read; what goes wrong with one output is kept in its `error`.
    """
    matrices = [tensor for tensor in tensors.values() if len(tensor.shape) == 2]
    files = {path: os.open(path, os.O_RDONLY) for path in {t.path for t in matrices}}
    jobs = [job for tensor in matrices for job in _jobs(tensor)]
    total, done = sum(tensor.nbytes for tensor in matrices), 0
    failed = threading.Event()

    def run(job: _Job) -> int:
        for rows, start in _read(files[job.tensor.path], job):
            if failed.is_set():
                break
            for output in outputs:
                output.write(job.tensor, rows, start)
        return job.tensor.nbytes * (job.stop - job.start) // job.tensor.shape[0]

    try:
        with ThreadPoolExecutor(threads) as executor:
            try:
                for future in as_completed([executor.submit(run, job) for job in jobs]):
                    before, done = done, done + future.result()
                    if done * 100 // total != before * 100 // total:
                        progress(done / total)
            except BaseException:
                failed.set()
                executor.shutdown(cancel_futures=True)
                raise
    finally:
        for descriptor in files.values():
            os.close(descriptor)


def _jobs(tensor: TensorInfo) -> Iterator[_Job]:
    rows, width = tensor.shape
    step = _rows_of(_JOB, width)
    for start in range(0, rows, step):
        yield _Job(tensor, start, min(start + step, rows))


def _rows_of(weights: int, width: int) -> int:
    """Return how many rows have about `weights` weights: an even number, as two zero points of 4
    bits share a byte."""
    return max(2, weights // width // 2 * 2)


def _read(descriptor: int, job: _Job) -> Iterator[tuple[Rows, int]]:
    """Yield the chunks of a job, and the number of the first row of each."""
    tensor = job.tensor
    width = tensor.shape[1]
    row_bytes = tensor.nbytes // tensor.shape[0]
    step = _rows_of(_CHUNK, width)
    for start in range(job.start, job.stop, step):
        nbytes = (min(start + step, job.stop) - start) * row_bytes
        data = os.pread(descriptor, nbytes, tensor.offset + start * row_bytes)
        if len(data) != nbytes:
            raise OSError(f"{tensor.path} ends within tensor {tensor.name}")
        values = np.frombuffer(data, READ_AS[tensor.dtype]).reshape(-1, width)
        yield Rows(tensor.name, tensor.dtype, values), start
