"""What ggml's kernels alone take to store a checkpoint's tensors: the floor of whoever calls them.

    PYTHON_OF_THE_LLAMACPP_TOOLCHAIN benchmarks/llamacpp_floor.py CHECKPOINT TYPE [TYPE ...]

Prints {"cpu_seconds": ..., "weights": ...}: CPU seconds of one thread inside the kernels for all
the file types together, each tensor once in every type that one of the files stores it in.
Reading and widening are outside of what is timed; F32 needs no kernel.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from phibuild.backends.llamacpp import ggml
from phibuild.backends.llamacpp.layout import FILE_TYPES, tensors
from phibuild.backends.llamacpp.memory import CHUNK_WEIGHTS
from phibuild.worker.architecture import read_architecture
from phibuild.worker.safetensors import ITEM_BYTES, TensorInfo, read_checkpoint


def floor(checkpoint: Path, file_types: Iterable[str]) -> tuple[float, int]:
    """Return CPU seconds of the kernels, and the weights of the checkpoint, for `file_types`."""
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    arch = read_architecture(config)
    kinds: dict[str, set[str]] = {}
    for file_type in file_types:
        for tensor in tensors(arch, file_type):
            if tensor.source is not None:
                kinds.setdefault(tensor.source, set()).add(tensor.kind)
    found = read_checkpoint(checkpoint)
    seconds, weights = 0.0, 0
    out = np.empty(0, np.uint8)
    for name, wanted in kinds.items():
        columns = found[name].shape[-1]
        for rows in _chunks(found[name]):
            weights += rows.size
            if out.size < 4 * rows.size:
                out = np.empty(4 * rows.size, np.uint8)
            for kind in sorted(wanted - {"F32"}):
                started = time.thread_time()
                ggml.quantize(kind, rows, columns, out)
                seconds += time.thread_time() - started
    return seconds, weights


def _chunks(tensor: TensorInfo) -> Iterator[ggml.Floats]:
    """Yield a tensor's rows as float32, as many at a time as a build takes."""
    columns, width = tensor.shape[-1], ITEM_BYTES[tensor.dtype]
    rows = max(1, CHUNK_WEIGHTS // columns)
    with tensor.path.open("rb") as file:
        file.seek(tensor.offset)
        for first in range(0, tensor.parameters // columns, rows):
            count = min(rows, tensor.parameters // columns - first) * columns
            wide = np.empty(count, np.float32)
            ggml.widen(np.frombuffer(file.read(count * width), np.uint8), tensor.dtype, wide)
            yield wide


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("types", nargs="+", choices=FILE_TYPES, metavar="TYPE")
    arguments = parser.parse_args(words)
    seconds, weights = floor(arguments.checkpoint, arguments.types)
    print(json.dumps({"cpu_seconds": seconds, "weights": weights}))


if __name__ == "__main__":
    main()
