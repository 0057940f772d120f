"""All variants of a request in one pass over the checkpoint: rows are converted and written in
place, in memory that the model's size does not change."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from phibuild.backends.pytorch.dtypes import FLOATS
from phibuild.backends.pytorch.inspect import inspect
from phibuild.backends.pytorch.layout import (
    MAX_SHARD_BYTES,
    GroupQuantization,
    RowQuantization,
    Scheme,
    file_entries,
)
from phibuild.backends.pytorch.memory import CHUNK_ELEMENTS, CHUNK_ROWS
from phibuild.backends.pytorch.model_config import artifact_config
from phibuild.backends.pytorch.quantize import pack, pack_rows, quantize, quantize_rows
from phibuild.backends.pytorch.threads import use_threads
from phibuild.worker.architecture import Architecture
from phibuild.worker.building import Build, Check
from phibuild.worker.codes import CodedRows, CodedWeights, coded_weights
from phibuild.worker.companions import complete_generation_config, copy_companions
from phibuild.worker.costs import Output
from phibuild.worker.passes import Chunk, Steps, Store, find_tensors, stream
from phibuild.worker.protocol import Contents, WorkerError
from phibuild.worker.safetensors import SafetensorsWriter

_STEPS = Steps(CHUNK_ELEMENTS, CHUNK_ROWS)


class WeightFiles:
    """The weights of one variant on their way to disk."""

    def __init__(
        self, folder: Path, scheme: Scheme, arch: Architecture, coded: CodedWeights | None
    ) -> None:
        self._scheme, self._coded = scheme, coded
        self._dtype: torch.dtype = getattr(torch, scheme.dtype)
        self._writer = SafetensorsWriter(
            folder,
            file_entries(arch, scheme),
            metadata={"format": "pt"},
            max_shard_bytes=MAX_SHARD_BYTES,
        )

    def write(self, name: str, shape: tuple[int, ...], row: int, chunk: Tensor) -> None:
        """Convert and write rows of the tensor `name` from number `row` on.

        Raises WorkerError if a weight is beyond the range of this variant's dtype, or not finite
        where it is quantized. Others that are not finite were allowed by the user: phibuild looks
        for them before it builds.
        """
        weights = chunk.to(self._dtype)
        quantization = self._scheme.quantization_of(name)
        if not torch.isfinite(torch.stack(torch.aminmax(weights))).all():
            if (torch.isfinite(chunk) & ~torch.isfinite(weights)).any():
                limit = torch.finfo(self._dtype).max
                raise WorkerError(
                    f"{name} has weights beyond {limit:,.0f}, the range of {self._scheme.dtype}"
                )
            if quantization is not None:
                raise WorkerError(f"{name} holds NaN or infinity, for which there are no codes")
        match quantization:
            case None:
                self._put(name, weights, row)
            case RowQuantization():
                codes, scale = quantize_rows(weights, quantization.type)
                self._put(name, codes, row)
                self._put(f"{name}_scale", scale, row)
            case GroupQuantization():
                self._write_groups(name, shape, row, weights, quantization)

    def _write_groups(
        self, name: str, shape: tuple[int, ...], row: int, weights: Tensor, how: GroupQuantization
    ) -> None:
        if row == 0:
            self._put(f"{name}_shape", torch.tensor(shape, dtype=torch.int64), 0)
        on_grid = self._coded is not None and how == self._scheme.quantization
        if self._coded is not None and on_grid and name in self._coded:
            codes, scale, zero_point = _from_codes(self._coded.rows(name, row, len(weights)))
        else:
            codes, scale, zero_point = quantize(weights, how)
        self._put(f"{name}_packed", pack(codes, how.bits), row)
        self._put(f"{name}_scale", scale, row)
        if zero_point is not None:
            words = pack_rows(zero_point, how.bits)
            self._put(f"{name}_zero_point", words, row * how.bits // 32)

    def _put(self, name: str, rows: Tensor, row: int) -> None:
        data = rows.contiguous().flatten().view(torch.uint8).numpy()
        self._writer.write(name, data.data, row * (data.nbytes // len(rows)))

    def close(self) -> None:
        """Wait until all is written, and close the files. Raises OSError for what could not be."""
        try:
            self._writer.finish()
        finally:
            self._writer.close()


def _from_codes(rows: CodedRows) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return what `quantize` does of rows that are on a grid already."""
    scales = torch.from_numpy(rows.scales)
    if scales.dtype == torch.uint16:  # numpy lacks bfloat16
        scales = scales.view(torch.bfloat16)
    zeros = None if rows.zeros is None else torch.from_numpy(rows.zeros)
    return torch.from_numpy(rows.codes), scales, zeros


class PytorchBuilder:
    """See phibuild.worker.building.Builder."""

    def prepare(self, build: Build[WeightFiles]) -> None:
        use_threads(1)  # threads work at chunks of their own: no waiting at every operation

    def open(self, build: Build[WeightFiles], output: Output) -> WeightFiles:
        scheme = Scheme.from_options(output.request["variant"]["options"])
        config = json.loads((build.source / "config.json").read_text(encoding="utf-8"))
        text = json.dumps(artifact_config(config, build.arch, scheme), indent=2)
        (output.folder / "config.json").write_text(text + "\n", encoding="utf-8")
        copy_companions(build.source, output.folder)
        complete_generation_config(output.folder, build.facts.stops)
        return WeightFiles(output.folder, scheme, build.arch, coded_weights(output.request))

    def convert(
        self, build: Build[WeightFiles], outputs: Sequence[tuple[Output, WeightFiles]]
    ) -> None:
        tensors = find_tensors(build.source, build.arch.tensors(), FLOATS)

        def stores() -> Store:
            torch.set_num_threads(1)  # of this thread
            return store

        def store(chunk: Chunk) -> None:
            rows = torch.frombuffer(chunk.data, dtype=FLOATS[chunk.tensor.dtype])
            rows = rows.view(chunk.rows, *chunk.tensor.shape[1:])
            for output, files in outputs:
                if output.error is None:
                    with build.costs.of(output):
                        files.write(chunk.tensor.name, chunk.tensor.shape, chunk.first, rows)

        stream(tensors, _STEPS, stores, build.left, build.threads, build.report)

    def close(self, kept: WeightFiles) -> None:
        kept.close()

    def checker(self) -> Check:
        from phibuild.backends.pytorch.tokenizer import check

        return check

    def inspect(self, folder: Path) -> Contents:
        return inspect(folder)
