"""One pass over a checkpoint: chunks of rows, each read once and stored in every output.

Every backend that converts weights itself does it in this loop, in threads. Memory holds a chunk
of each thread and what is made of it, whatever the model's size. Standard library only.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from phibuild.worker.protocol import Report, WorkerError
from phibuild.worker.safetensors import ITEM_BYTES, TensorInfo, read_checkpoint

_PROGRESS_SECONDS = 0.2


@dataclass(frozen=True)
class Chunk:
    """Rows of a tensor from number `first` on, as the checkpoint has them (a vector is one chunk,
    of as many rows as it has elements). The thread's next chunk takes the place of `data`."""

    tensor: TensorInfo
    first: int
    rows: int
    data: memoryview


Store = Callable[[Chunk], None]
"""Stores a chunk in all outputs; what goes wrong with one of them is not raised."""


@dataclass(frozen=True)
class Steps:
    """How the rows of a matrix are cut: about `weights` weights to a chunk, always a multiple of
    `multiple` rows but at its end, and `chunks` chunks that follow each other to a thread."""

    weights: int
    multiple: int = 1
    chunks: int = 1

    def rows(self, width: int) -> int:
        """Return the rows of a chunk of a matrix so many columns wide."""
        return max(1, self.weights // width // self.multiple) * self.multiple

    def largest(self, tensors: Iterable[TensorInfo]) -> int:
        """Return the bytes of the largest chunk."""
        return max((self.of(tensor) * _row_bytes(tensor) for tensor in tensors), default=0)

    def of(self, tensor: TensorInfo) -> int:
        """Return the rows of a tensor's chunks: a vector is not cut."""
        rows = tensor.shape[0]
        return rows if len(tensor.shape) == 1 else min(rows, self.rows(_width(tensor)))


def find_tensors(
    source: Path, wanted: Iterable[tuple[str, tuple[int, ...]]], types: Collection[str]
) -> list[TensorInfo]:
    """Return the tensors of a checkpoint that have these names and shapes, in this order. Others
    are left out: a tied model's checkpoint may hold lm_head all the same.

    Raises WorkerError for the first that is missing, or of another shape or another of safetensors'
    `types`, ValueError or OSError if the checkpoint cannot be read.
    """
    tensors = read_checkpoint(source)
    found = []
    for name, shape in wanted:
        tensor = tensors.get(name)
        if tensor is None:
            raise WorkerError(f"the checkpoint has no tensor {name}")
        if tensor.shape != shape or tensor.dtype not in types:
            raise WorkerError(
                f"tensor {name} is {tensor.dtype} {list(tensor.shape)} in the checkpoint; "
                f"this model needs {list(shape)} in {', '.join(types)}"
            )
        found.append(tensor)
    return found


def stream(
    tensors: Sequence[TensorInfo],
    steps: Steps,
    stores: Callable[[], Store],
    left: Callable[[], bool],
    threads: int,
    report: Report,
) -> None:
    """Read `tensors` once and hand every chunk to a store: each thread gets one of its own by
    `stores()`. It ends early where nothing is `left()` to be written.

    Raises WorkerError or OSError if the checkpoint cannot be read.
    """
    with ExitStack() as stack:
        opened: dict[Path, int] = {}
        for path in dict.fromkeys(tensor.path for tensor in tensors):
            opened[path] = os.open(path, os.O_RDONLY)
            stack.callback(os.close, opened[path])
        work = _Pass(tensors, steps, opened, left, report)
        with ThreadPoolExecutor(threads) as pool:
            for thread in [pool.submit(work.run, stores) for _ in range(threads)]:
                thread.result()


class _Pass:
    """What the threads of a pass share."""

    def __init__(
        self,
        tensors: Sequence[TensorInfo],
        steps: Steps,
        opened: dict[Path, int],
        left: Callable[[], bool],
        report: Report,
    ) -> None:
        self._steps, self._opened, self._left, self._report = steps, opened, left, report
        self._room = steps.largest(tensors)
        self._total = sum(tensor.nbytes for tensor in tensors)
        self._done, self._told = 0, time.monotonic()
        self._lock = threading.Lock()
        self._jobs = self._cut(tensors)

    def _cut(self, tensors: Sequence[TensorInfo]) -> Iterator[list[tuple[TensorInfo, int, int]]]:
        """Yield what a thread takes at a time: chunks as (tensor, first row, rows)."""
        for tensor in tensors:
            rows = tensor.shape[0]
            step = self._steps.of(tensor)
            chunks = [(tensor, first, min(step, rows - first)) for first in range(0, rows, step)]
            for begin in range(0, len(chunks), self._steps.chunks):
                yield chunks[begin : begin + self._steps.chunks]

    def run(self, stores: Callable[[], Store]) -> None:
        """Take jobs until there are none, or one cannot be read."""
        try:
            store, room = stores(), memoryview(bytearray(self._room))
            while job := self._next():
                for tensor, first, rows in job:
                    nbytes = rows * _row_bytes(tensor)
                    self._read(tensor, first, room[:nbytes])
                    store(Chunk(tensor, first, rows, room[:nbytes]))
                    self._advance(nbytes)
        except BaseException:
            with self._lock:
                self._jobs = iter(())  # the other threads stop too
            raise

    def _next(self) -> list[tuple[TensorInfo, int, int]] | None:
        with self._lock:
            return next(self._jobs, None) if self._left() else None

    def _read(self, tensor: TensorInfo, first: int, room: memoryview) -> None:
        """Fill `room`; a read may give less."""
        offset = tensor.offset + first * _row_bytes(tensor)
        while room:
            count = os.preadv(self._opened[tensor.path], [room], offset)
            if not count:
                raise WorkerError(f"{tensor.path.name} ends within {tensor.name}")
            room, offset = room[count:], offset + count

    def _advance(self, nbytes: int) -> None:
        with self._lock:
            self._done += nbytes
            now = time.monotonic()
            if now - self._told >= _PROGRESS_SECONDS or self._done == self._total:
                self._told = now
                self._report.stage("converting", self._done / self._total)


def _width(tensor: TensorInfo) -> int:
    return math.prod(tensor.shape[1:])


def _row_bytes(tensor: TensorInfo) -> int:
    return _width(tensor) * ITEM_BYTES[tensor.dtype]
