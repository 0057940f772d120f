"""Write several GGUF files in one pass over a checkpoint, in bounded memory, in threads.

Each chunk of rows is read once and widened to float32 once, then stored in every type that any of
the files wants, and written to its place in each file. What is held at a time is one chunk per
thread, whatever the model's size.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from phibuild.backends.llamacpp import ggml
from phibuild.backends.llamacpp.header import Value, data_bytes, data_offsets, encode_header
from phibuild.backends.llamacpp.layout import Tensor, row_bytes
from phibuild.backends.llamacpp.limits import CHUNK_WEIGHTS, MAX_THREADS
from phibuild.safetensors_io import ITEM_BYTES, TensorInfo
from phibuild.worker import WorkerError

_SOURCE_TYPES = ("BF16", "F16", "F32")


@dataclass
class GgufFile:
    """A file to write. `constants` are the tensors that come from no checkpoint. After
    `write_files`, `error` says why it could not be written; `seconds` is its share of the work."""

    path: Path
    values: Sequence[Value]
    tensors: Sequence[Tensor]
    constants: Mapping[str, Sequence[float]]
    error: Exception | None = None
    seconds: float = 0.0
    _fd: int = -1
    _places: dict[str, tuple[Tensor, int]] = field(default_factory=dict)

    def open(self) -> None:
        """Create the file: header, room for the data, constants."""
        header = encode_header(self.values, self.tensors)
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        os.ftruncate(self._fd, len(header) + data_bytes(self.tensors))
        self._write(header, 0)
        for tensor, offset in zip(self.tensors, data_offsets(self.tensors), strict=True):
            if tensor.source is None:
                numbers = np.array(self.constants[tensor.name], "<f4")
                self._write(numbers.tobytes(), len(header) + offset)
            else:
                self._places[tensor.source] = (tensor, len(header) + offset)

    def close(self) -> None:
        """Close the file, and remove it if it could not be written."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self.error is not None:
            self.path.unlink(missing_ok=True)

    def tensor(self, source: str) -> Tensor:
        """Return the tensor of this file that the checkpoint's tensor `source` becomes."""
        return self._places[source][0]

    def write_rows(self, source: str, first_row: int, data: bytes | memoryview) -> None:
        """Write the stored rows of a tensor from row `first_row` on."""
        tensor, position = self._places[source]
        self._write(data, position + first_row * row_bytes(tensor.kind, tensor.shape[-1]))

    def _write(self, data: bytes | memoryview, position: int) -> None:
        view = memoryview(data)
        while view.nbytes:  # pwrite may write less than it is given
            written = os.pwrite(self._fd, view, position)
            view, position = view[written:], position + written


def write_files(
    checkpoint: Mapping[str, TensorInfo],
    files: Sequence[GgufFile],
    threads: int,
    progress: Callable[[float], None],
) -> None:
    """Write all files. One that cannot be written gets its `error` and is removed, the others go
    on; where the checkpoint cannot be read, all of them get it.

    `progress` is called with the share that is done, from any thread, one call at a time.
    """
    opened: dict[Path, int] = {}
    try:
        sources = [checkpoint[tensor.source] for tensor in files[0].tensors if tensor.source]
        for source in sources:
            if source.dtype not in _SOURCE_TYPES:
                raise WorkerError(
                    f"{source.name} is stored as {source.dtype}; "
                    f"the llamacpp backend reads {', '.join(_SOURCE_TYPES)}"
                )
            if source.path not in opened:
                opened[source.path] = os.open(source.path, os.O_RDONLY)
        for file in files:
            file.open()
        run = _Pass(sources, opened, files, progress)
        threads = min(threads, MAX_THREADS)
        with ThreadPoolExecutor(threads) as pool:
            for worker in [pool.submit(run.work) for _ in range(threads)]:
                worker.result()
    except Exception as error:
        for file in files:
            file.error = file.error or error
    finally:
        for fd in opened.values():
            os.close(fd)
        for file in files:
            file.close()


class _Pass:
    """One pass over the checkpoint; every thread runs `work` until no chunk is left."""

    def __init__(
        self,
        sources: Sequence[TensorInfo],
        opened: Mapping[Path, int],
        files: Sequence[GgufFile],
        progress: Callable[[float], None],
    ) -> None:
        self._opened, self._files, self._progress = opened, files, progress
        self._total = sum(source.parameters for source in sources)
        self._done = 0
        self._lock = threading.Lock()
        self._chunks = self._cut(sources)

    @staticmethod
    def _cut(sources: Sequence[TensorInfo]) -> Iterator[tuple[TensorInfo, int, int]]:
        """Yield (tensor, first row, rows)."""
        for source in sources:
            rows = source.parameters // source.shape[-1]
            step = max(1, CHUNK_WEIGHTS // source.shape[-1])
            for first in range(0, rows, step):
                yield source, first, min(step, rows - first)

    def work(self) -> None:
        """Take chunks until there are none, or one cannot be read."""
        wide = np.empty(0, np.float32)
        out = np.empty(0, np.uint8)
        while True:
            with self._lock:
                chunk = next(self._chunks, None)
            if chunk is None or all(file.error for file in self._files):
                return
            source, first, rows = chunk
            weights = rows * source.shape[-1]
            if wide.size < weights:
                wide, out = np.empty(weights, np.float32), np.empty(4 * weights, np.uint8)
            try:
                self._store(source, first, wide[:weights], out)
            except BaseException:
                with self._lock:
                    self._chunks = iter(())  # the other threads stop too
                raise
            with self._lock:
                self._done += weights
                self._progress(self._done / self._total)

    def _store(self, source: TensorInfo, first: int, wide: ggml.Floats, out: ggml.Bytes) -> None:
        columns, width = source.shape[-1], ITEM_BYTES[source.dtype]
        offset = source.offset + first * columns * width
        raw = os.pread(self._opened[source.path], wide.size * width, offset)
        if len(raw) != wide.size * width:
            raise WorkerError(f"{source.path.name} ends within {source.name}")
        ggml.widen(raw, source.dtype, wide)
        by_kind: dict[str, list[GgufFile]] = {}
        for file in self._files:
            if file.error is None:
                by_kind.setdefault(file.tensor(source.name).kind, []).append(file)
        for kind, files in by_kind.items():
            started = time.perf_counter()
            try:
                data = _encode(source, kind, raw, wide, out)
            except WorkerError as error:
                for file in files:
                    file.error = error
                continue
            for file in files:
                try:
                    file.write_rows(source.name, first, data)
                except OSError as error:
                    file.error = error
            spent = (time.perf_counter() - started) / len(files)
            with self._lock:
                for file in files:
                    file.seconds += spent


def _encode(
    source: TensorInfo, kind: str, raw: bytes, wide: ggml.Floats, out: ggml.Bytes
) -> bytes | memoryview:
    """Return a chunk's rows in type `kind`. Raises WorkerError where a value does not survive."""
    data: bytes | memoryview
    if kind == source.dtype:
        data = raw
    elif kind == "F32":
        data = wide.data.cast("B")
    else:
        data = out[: ggml.quantize(kind, wide, source.shape[-1], out)].data
    if not ggml.is_valid(kind, np.frombuffer(data, np.uint8)):
        largest = float(np.abs(wide).max())
        why = (
            f"its largest value is {largest:.4g}; half precision, in which {kind} keeps its "
            "values or its scales, ends at 65504"
            if np.isfinite(largest)
            else "the checkpoint itself holds infinity or NaN there"
        )
        raise WorkerError(f"{source.name} cannot be stored as {kind}: {why}")
    return data
