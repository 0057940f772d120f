"""All variants of a request in one pass over the checkpoint, in memory that the model's size does
not change: rows are read in chunks, converted for every variant and written in place."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from phibuild.backends.pytorch.inspect import inspect
from phibuild.backends.pytorch.layout import MAX_SHARD_BYTES, Scheme, file_entries
from phibuild.backends.pytorch.memory import CHUNK_ELEMENTS, CHUNK_ROWS
from phibuild.backends.pytorch.model_config import artifact_config
from phibuild.backends.pytorch.quantize import pack, pack_rows, quantize
from phibuild.backends.pytorch.threads import use_threads
from phibuild.worker.architecture import Architecture
from phibuild.worker.companions import complete_generation_config, copy_companions
from phibuild.worker.protocol import Report, WorkerError
from phibuild.worker.safetensors import SafetensorsWriter, TensorInfo, read_checkpoint
from phibuild.worker.tokenizer_check import read_facts

_TORCH_DTYPE = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


class Artifact:
    """One variant on its way to disk."""

    def __init__(self, item: str, folder: Path, scheme: Scheme, arch: Architecture) -> None:
        self.item = item
        self.folder = folder
        self._scheme = scheme
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
        if quantization is None:
            self._put(name, weights, row)
            return
        if row == 0:
            self._put(f"{name}_shape", torch.tensor(shape, dtype=torch.int64), 0)
        codes, scale, zero_point = quantize(weights, quantization)
        self._put(f"{name}_packed", pack(codes, quantization.bits), row)
        self._put(f"{name}_scale", scale, row)
        if zero_point is not None:
            words = pack_rows(zero_point, quantization.bits)
            self._put(f"{name}_zero_point", words, row * quantization.bits // 32)

    def _put(self, name: str, rows: Tensor, row: int) -> None:
        data = rows.contiguous().flatten().view(torch.uint8).numpy()
        self._writer.write(name, data.data, row * (data.nbytes // len(rows)))

    def finish(self, source: Path, stops: Sequence[int]) -> None:
        """Close the weights and write the files beside them."""
        self._writer.finish()
        self.close()
        config = json.loads((source / "config.json").read_text(encoding="utf-8"))
        text = json.dumps(artifact_config(config, self._scheme), indent=2)
        (self.folder / "config.json").write_text(text + "\n", encoding="utf-8")
        copy_companions(source, self.folder)
        complete_generation_config(self.folder, stops)

    def close(self) -> None:
        self._writer.close()


def build(request: dict[str, Any], report: Report) -> None:
    """Write each item's artifact; report it complete, or failed and go on with the others."""
    use_threads(1)  # threads work at chunks of their own: no waiting at every operation
    source = Path(request["source"])
    arch = Architecture.from_json(request["architecture"])
    artifacts: list[Artifact] = []
    for item in request["items"]:
        scheme = Scheme.from_options(item["variant"]["options"])
        try:
            artifacts.append(Artifact(item["item"], Path(item["output"]), scheme, arch))
        except OSError as error:
            report.failed(item["item"], error)
    try:
        facts = read_facts(Path(request["facts"]))
        _convert(source, arch, artifacts, request["threads"], report)
    except (WorkerError, OSError, ValueError) as error:  # the checkpoint cannot be read
        for artifact in artifacts:
            artifact.close()
            report.failed(artifact.item, error)
        return
    from phibuild.backends.pytorch.tokenizer import check  # imports Transformers

    checked: dict[str, Any] = {}  # all have the same files

    for artifact in artifacts:
        try:
            artifact.finish(source, facts.stops)
            result = inspect(artifact.folder)
            report.stage("checking the tokenizer", item=artifact.item)
            checked = checked or check(artifact.folder, facts)
            result["tokenizer"] = checked
        except (WorkerError, OSError, ValueError) as error:
            report.failed(artifact.item, error)
        else:
            report.item(artifact.item, result)


def _convert(
    source: Path, arch: Architecture, artifacts: list[Artifact], threads: int, report: Report
) -> None:
    """Write all weights; an artifact that fails is reported and taken out of the list."""
    tensors = read_checkpoint(source)
    total, done = arch.parameters, 0
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for name, shape in arch.tensors():
            info = _expected(tensors, name, shape)
            step = max(CHUNK_ELEMENTS * shape[0] // info.parameters // CHUNK_ROWS, 1) * CHUNK_ROWS
            write = partial(_write_rows, artifacts, info, step)
            failed: dict[Artifact, WorkerError | OSError] = {}
            for failures in pool.map(write, range(0, shape[0], step)):
                failed = failures | failed
            for artifact, error in failed.items():  # no thread writes to it any more
                artifacts.remove(artifact)
                artifact.close()
                report.failed(artifact.item, error)
            if not artifacts:
                return
            done += info.parameters
            for artifact in artifacts:
                report.stage("converting", done / total, artifact.item)


def _expected(tensors: dict[str, TensorInfo], name: str, shape: tuple[int, ...]) -> TensorInfo:
    """Return where a tensor is. Raises WorkerError if the checkpoint has no such tensor."""
    info = tensors.get(name)
    if info is None or info.shape != shape or info.dtype not in _TORCH_DTYPE:
        found = "is missing" if info is None else f"is {info.dtype} {list(info.shape)}"
        raise WorkerError(f"{name} of the checkpoint {found}; a float tensor {list(shape)} is due")
    return info


def _write_rows(
    artifacts: list[Artifact], info: TensorInfo, step: int, row: int
) -> dict[Artifact, WorkerError | OSError]:
    """Write up to `step` rows from number `row` on into every artifact; return those that failed
    and why. Raises WorkerError or OSError if the rows cannot be read."""
    rows = min(step, info.shape[0] - row)
    row_bytes = info.nbytes // info.shape[0]
    data = bytearray(rows * row_bytes)
    with info.path.open("rb", buffering=0) as file:
        file.seek(info.offset + row * row_bytes)
        _fill(file, memoryview(data), info.path)
    chunk = torch.frombuffer(data, dtype=_TORCH_DTYPE[info.dtype]).view(rows, *info.shape[1:])
    failures: dict[Artifact, WorkerError | OSError] = {}
    for artifact in tuple(artifacts):
        try:
            artifact.write(info.name, info.shape, row, chunk)
        except (WorkerError, OSError) as error:
            failures[artifact] = error
    return failures


def _fill(file: Any, view: memoryview, path: Path) -> None:
    """Read until `view` is full; a raw read may give less."""
    while view:
        count = file.readinto(view)
        if not count:
            raise WorkerError(f"{path.name} ended early while it was read")
        view = view[count:]
