"""Write several GGUF files in one pass over a checkpoint, in bounded memory, in threads.

Each chunk of rows is read once and widened to float32 once, then stored in every type that any of
the files wants, and written to its place in each file. What is held at a time is one chunk per
thread, whatever the model's size.
"""

from __future__ import annotations

import math
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
from phibuild.backends.llamacpp.memory import CHUNK_WEIGHTS, MAX_THREADS
from phibuild.backends.llamacpp.quantizer import Quantize
from phibuild.worker.direct_io import OutputFile
from phibuild.worker.protocol import WorkerError
from phibuild.worker.safetensors import ITEM_BYTES, TensorInfo

_SOURCE_TYPES = ("BF16", "F16", "F32")
_TOO_LARGE = {"F16": 65520.0, "F32": math.inf}
"""Where the types that are no blocks end: half precision rounds smaller values to 65504."""


@dataclass
class GgufFile:
    """A file to write. `constants` are the tensors that come from no checkpoint; `importance` has
    the weights of the columns [columns] of those tensors, by their name in the checkpoint, that are
    quantized with some. After `write_files`, `error` says why it could not be written; `seconds` is
    its share of the work."""

    path: Path
    values: Sequence[Value]
    tensors: Sequence[Tensor]
    constants: Mapping[str, Sequence[float]]
    importance: Mapping[str, ggml.Floats] = field(default_factory=dict)
    error: Exception | None = None
    seconds: float = 0.0
    _file: OutputFile | None = None
    _places: dict[str, tuple[Tensor, int]] = field(default_factory=dict)

    def open(self) -> None:
        """Create the file: header, room for the data, constants."""
        header = encode_header(self.values, self.tensors)
        self._file = OutputFile(self.path, len(header) + data_bytes(self.tensors))
        self._file.write(header, 0)
        for tensor, offset in zip(self.tensors, data_offsets(self.tensors), strict=True):
            if tensor.source is None:
                numbers = np.array(self.constants[tensor.name], "<f4")
                self._file.write(numbers.tobytes(), len(header) + offset)
            else:
                self._places[tensor.source] = (tensor, len(header) + offset)

    def close(self) -> None:
        """Wait until all is written, and close the file; remove it if it could not be written."""
        if self._file is None:
            return
        try:
            self._file.finish()
        except OSError as error:
            self.error = self.error or _not_written(self, error)
        if self.error is None:
            self._file.close()
        else:
            self._file.discard()

    def tensor(self, source: str) -> Tensor:
        """Return the tensor of this file that the checkpoint's tensor `source` becomes."""
        return self._places[source][0]

    def write_rows(self, source: str, first_row: int, data: bytes | memoryview) -> None:
        """Write the stored rows of a tensor from row `first_row` on."""
        tensor, position = self._places[source]
        assert self._file is not None  # it is open
        self._file.write(data, position + first_row * row_bytes(tensor.kind, tensor.shape[-1]))


def write_files(
    checkpoint: Mapping[str, TensorInfo],
    files: Sequence[GgufFile],
    quantize: Quantize,
    threads: int,
    progress: Callable[[float], None],
) -> None:
    """Write all files; `quantize` stores rows. A file that cannot be written gets its `error` and
    is removed, the others go on; where the checkpoint cannot be read, all of them get it.

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
            try:
                file.open()
            except OSError as error:  # the disk may have room for the others
                file.error = _not_written(file, error)
                file.close()
        run = _Pass(sources, opened, files, quantize, progress)
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
        quantize: Quantize,
        progress: Callable[[float], None],
    ) -> None:
        self._opened, self._files, self._progress = opened, files, progress
        self._quantize = quantize
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
        raw = out = np.empty(0, np.uint8)
        while True:
            with self._lock:
                chunk = next(self._chunks, None)
            if chunk is None or all(file.error for file in self._files):
                return
            source, first, rows = chunk
            weights = rows * source.shape[-1]
            if wide.size < weights:
                wide = np.empty(weights, np.float32)
                raw, out = np.empty((2, 4 * weights), np.uint8)
            nbytes = weights * ITEM_BYTES[source.dtype]
            try:
                self._store(source, first, raw[:nbytes], wide[:weights], out)
            except BaseException:
                with self._lock:
                    self._chunks = iter(())  # the other threads stop too
                raise
            with self._lock:
                self._done += weights
                self._progress(self._done / self._total)

    def _store(
        self, source: TensorInfo, first: int, raw: ggml.Bytes, wide: ggml.Floats, out: ggml.Bytes
    ) -> None:
        """Read rows from `first` on into `raw`, widen them to `wide`, write them to all files;
        `out` has room for their encoding."""
        offset = source.offset + first * source.shape[-1] * ITEM_BYTES[source.dtype]
        if os.preadv(self._opened[source.path], [raw.data], offset) != raw.nbytes:
            raise WorkerError(f"{source.path.name} ends within {source.name}")
        ggml.widen(raw, source.dtype, wide)
        largest = float(np.maximum(wide.max(), -wide.min()))  # NaN if there is one
        # Files that weigh a matrix's errors alike hold the same array.
        alike: dict[tuple[str, int], list[GgufFile]] = {}
        for file in self._files:
            if file.error is None:
                weighed = id(file.importance.get(source.name))
                alike.setdefault((file.tensor(source.name).kind, weighed), []).append(file)
        for (kind, _), files in alike.items():
            importance = files[0].importance.get(source.name)
            started = time.perf_counter()
            try:
                data = self._encode(source, kind, importance, raw, wide, largest, out)
            except WorkerError as error:
                for file in files:
                    file.error = error
                continue
            for file in files:
                try:
                    file.write_rows(source.name, first, data)
                except OSError as error:
                    file.error = _not_written(file, error)
            spent = (time.perf_counter() - started) / len(files)
            with self._lock:
                for file in files:
                    file.seconds += spent

    def _encode(
        self,
        source: TensorInfo,
        kind: str,
        importance: ggml.Floats | None,
        raw: ggml.Bytes,
        wide: ggml.Floats,
        largest: float,
        out: ggml.Bytes,
    ) -> memoryview:
        """Return a chunk's rows in type `kind`; `largest` is their largest absolute value.

        Raises WorkerError where a value does not survive.
        """
        if kind == source.dtype:
            data = raw
        elif kind == "F32":
            data = wide.view(np.uint8)
        else:
            data = out[: self._quantize(kind, wide, source.shape[-1], out, importance)]
        end = _TOO_LARGE.get(kind)
        if end is not None and not math.isfinite(largest):
            # Allowed by the user, and a float holds it; finite ones must be in range all the same.
            largest = float(np.abs(wide[np.isfinite(wide)]).max(initial=0.0))
        good = largest < (math.inf if end is None else end)  # false for NaN
        if not good or (end is None and not ggml.is_valid(kind, data)):
            why = (
                f"its largest value is {largest:.4g}; half precision, in which {kind} keeps its "
                "values or its scales, ends at 65504"
                if math.isfinite(largest)
                else "the checkpoint itself holds infinity or NaN there, for which it has no codes"
            )
            raise WorkerError(f"{source.name} cannot be stored as {kind}: {why}")
        return data.data


def _not_written(file: GgufFile, error: OSError) -> WorkerError:
    size = data_bytes(file.tensors)
    return WorkerError(f"{file.path.name} ({size:,} bytes) cannot be written: {error.strerror}")
