"""Pieces of files, gathered in aligned buffers and written by threads while the work goes on.

Standard library only.
"""

from __future__ import annotations

import functools
import mmap
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

BLOCK = max(4096, mmap.PAGESIZE)
"""Offsets, lengths and addresses of direct writes are multiples of it: enough for any disk, and no
page of the cache is shared with what is written directly."""

BUFFERS_BYTES = 16 << 20
"""Memory that a process which writes large files holds for them."""

_BUFFER_BYTES = 1 << 20


class Sink(Protocol):
    """A file that runs are written to. Both methods are called from any thread."""

    def begin(self) -> None:
        """Count a run that is about to be written."""

    def put(self, data: memoryview, offset: int) -> None:
        """Write a run at `offset`, and count it as done; `data` lies in memory as in blocks of the
        file. Raises nothing."""


class Run:
    """Consecutive bytes of a file, from `offset` on, in a buffer where they lie as in blocks."""

    def __init__(self, file: Sink, offset: int, buffer: memoryview) -> None:
        self.file, self.offset, self.buffer = file, offset, buffer
        self._first = self._end = offset % BLOCK

    def fill(self, data: memoryview) -> int:
        """Add as much of `data` as there is room for; return how much that is."""
        count = min(data.nbytes, len(self.buffer) - self._end)
        self.buffer[self._end : self._end + count] = data[:count]
        self._end += count
        return count

    @property
    def is_full(self) -> bool:
        return self._end == len(self.buffer)

    def write(self) -> None:
        self.file.put(self.buffer[self._first : self._end], self.offset)


class Buffers:
    """The buffers of a process, for the runs of all its files: a piece that begins where a run ends
    is added to it, so that small pieces become large writes."""

    def __init__(self) -> None:
        self._free = [aligned(_BUFFER_BYTES) for _ in range(BUFFERS_BYTES // _BUFFER_BYTES)]
        self._runs: OrderedDict[tuple[Sink, int], Run] = OrderedDict()  # by their ends
        self._change = threading.Condition()
        self._writers = ThreadPoolExecutor(2, thread_name_prefix="write")

    def take(self, file: Sink, offset: int) -> Run:
        """Return the run that ends at `offset`, or a new one; the one that has waited longest makes
        room for it. Waits where the disk is slower than the work."""
        with self._change:
            run = self._runs.pop((file, offset), None)
            while run is None:
                if self._free:
                    return Run(file, offset, self._free.pop())
                if self._runs:
                    self._submit(self._runs.popitem(last=False)[1])
                self._change.wait()
            return run

    def give(self, run: Run, end: int) -> None:
        """Take a run back, which ends at `end` now; a full one is written."""
        with self._change:
            if run.is_full:
                self._submit(run)
            else:
                self._runs[run.file, end] = run
                self._change.notify()

    def flush(self, file: Sink) -> None:
        """Have all runs of a file written."""
        with self._change:
            for key in [key for key in self._runs if key[0] is file]:
                self._submit(self._runs.pop(key))

    def _submit(self, run: Run) -> None:
        def write() -> None:
            run.write()
            with self._change:
                self._free.append(run.buffer)
                self._change.notify()

        run.file.begin()
        self._writers.submit(write)


@functools.cache
def buffers() -> Buffers:
    """Return the buffers of this process."""
    return Buffers()


def aligned(size: int) -> memoryview:
    """Return memory of its own pages, so that it begins with one."""
    return memoryview(mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
