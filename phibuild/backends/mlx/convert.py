"""One pass over a checkpoint, several MLX artifacts: blocks of rows, each to its known place.

Rows are independent in every variant, so the bytes depend neither on the blocks nor on the
threads.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from phibuild.backends.mlx.blocks import Block
from phibuild.backends.mlx.inspect import inspect
from phibuild.backends.mlx.layout import (
    MlxQuantization,
    matrix_quantization,
    module_order,
    stored_arrays,
)
from phibuild.backends.mlx.malloc import keep_freed
from phibuild.backends.mlx.model_config import write_config
from phibuild.backends.mlx.packing import pack
from phibuild.worker.architecture import Architecture
from phibuild.worker.building import Build, Check
from phibuild.worker.codes import CodedRows, CodedWeights, coded_weights
from phibuild.worker.companions import complete_generation_config, copy_companions
from phibuild.worker.costs import Output
from phibuild.worker.floats import NUMPY_TYPES, AnyFloats
from phibuild.worker.passes import Chunk, Steps, find_tensors, stream
from phibuild.worker.protocol import Contents
from phibuild.worker.requests import Options
from phibuild.worker.safetensors import FLOAT_DTYPES, INDEX, SafetensorsWriter

# As float32 a chunk's weights stay in a processor's cache while they are worked on.
STEPS = Steps(weights=1 << 18, chunks=16)
_KEPT_BYTES = 32 << 20  # of a thread: more than a chunk and all that is made of it
MAX_SHARD_BYTES = 5 << 30  # mlx_lm.utils.MAX_FILE_SIZE_GB


class WeightFiles:
    """One artifact's weights while they are written."""

    def __init__(
        self, folder: Path, arch: Architecture, options: Options, coded: CodedWeights | None
    ) -> None:
        self.dtype = FLOAT_DTYPES[options["dtype"]]
        self._folder, self._parameters, self._coded = folder, arch.parameters, coded
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

    def is_coded(self, name: str) -> bool:
        """Return whether the tensor `name` is on its grid already."""
        how = self.quantization_of(name)
        if self._coded is None or how is None or name not in self._coded:
            return False
        return how.bits == self._coded.grid.bits

    def quantization_of(self, name: str) -> MlxQuantization | None:
        """Return how the tensor `name` is quantized, None if it is cast."""
        return self._quantization.get(name)

    def write(self, name: str, block: Block, row: int) -> None:
        """Store a block of the tensor `name`, from its row `row` on. Raises WorkerError if a weight
        cannot be stored so."""
        how = self.quantization_of(name)
        if how and self.is_coded(name):
            assert self._coded is not None
            parts = _from_codes(self._coded.rows(name, row, block.rows), how.bits)
        else:
            parts = block.quantized(self.dtype, how) if how else (block.as_type(self.dtype),)
        for place, part in zip(self._stored[name], parts, strict=True):
            self._writer.write(place.name, part.data, row * (part.nbytes // len(part)))

    def close(self) -> None:
        """Wait until all is written, close the files and complete their index by the number of
        parameters, which mlx-lm's has and Transformers' has not. Raises OSError."""
        try:
            self._writer.finish()
        finally:
            self._writer.close()
        path = self._folder / INDEX
        index = json.loads(path.read_text(encoding="utf-8"))
        index["metadata"]["total_parameters"] = self._parameters
        path.write_text(json.dumps(index, indent=4), encoding="utf-8")


def _from_codes(rows: CodedRows, bits: int) -> Sequence[AnyFloats]:
    """Return what `Block.quantized` does of rows that are on a grid already."""
    assert rows.zeros is not None  # the grid has biases
    return pack(rows.codes, bits), rows.scales, rows.zeros


Opened = tuple[Output, WeightFiles]


class MlxBuilder:
    """See phibuild.worker.building.Builder."""

    def prepare(self, build: Build[WeightFiles]) -> None:
        keep_freed(_KEPT_BYTES)

    def open(self, build: Build[WeightFiles], output: Output) -> WeightFiles:
        options = output.request["variant"]["options"]
        write_config(build.source, output.folder, build.arch, options, build.facts.stops)
        copy_companions(build.source, output.folder)
        complete_generation_config(output.folder, build.facts.stops)
        return WeightFiles(output.folder, build.arch, options, coded_weights(output.request))

    def convert(self, build: Build[WeightFiles], outputs: Sequence[Opened]) -> None:
        tensors = find_tensors(build.source, module_order(build.arch), NUMPY_TYPES)

        def store(chunk: Chunk) -> None:
            name, dtype = chunk.tensor.name, chunk.tensor.dtype
            rows = np.frombuffer(chunk.data, NUMPY_TYPES[dtype])
            block = Block(name, rows.reshape(chunk.rows, *chunk.tensor.shape[1:]), dtype)
            left = [(output, files) for output, files in outputs if output.error is None]
            for make, some in _shared(name, block, left):
                with build.costs.of(*some):
                    make()
            for output, files in left:
                if output.error is None:
                    with build.costs.of(output):
                        files.write(name, block, chunk.first)

        stream(tensors, STEPS, lambda: store, build.left, build.threads, build.report)

    def close(self, kept: WeightFiles) -> None:
        kept.close()

    def checker(self) -> Check:
        from phibuild.backends.mlx.tokenizer import check  # imports Transformers

        return check

    def inspect(self, folder: Path) -> Contents:
        return inspect(folder)


def _shared(
    name: str, block: Block, outputs: Sequence[Opened]
) -> Iterable[tuple[Callable[[], object], list[Output]]]:
    """Return what several outputs need of a block, and which: it is made once, for all of them."""
    casts: dict[str, list[Output]] = {}
    groups: dict[tuple[str, int], list[Output]] = {}
    for output, files in outputs:
        casts.setdefault(files.dtype, []).append(output)
        how = files.quantization_of(name)
        if how and how.mode == "affine" and not files.is_coded(name):
            groups.setdefault((files.dtype, how.group_size), []).append(output)
    return [
        *((partial(block.as_type, dtype), some) for dtype, some in casts.items()),
        *((partial(block.groups, *key), some) for key, some in groups.items()),
    ]
