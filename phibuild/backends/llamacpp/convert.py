"""Write several GGUF files in one pass over a checkpoint.

Each chunk of rows is widened to float32 once, then stored in every type that any of the files
wants, and written to its place in each file.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from phibuild.backends.llamacpp import cache, ggml
from phibuild.backends.llamacpp.coded import coded_blocks
from phibuild.backends.llamacpp.files import GgufFile
from phibuild.backends.llamacpp.header import Value
from phibuild.backends.llamacpp.imatrix import Importance, read_importance
from phibuild.backends.llamacpp.inspect import inspect, model_file
from phibuild.backends.llamacpp.layout import ROPE_FACTORS, variant_tensors
from phibuild.backends.llamacpp.memory import CHUNK_WEIGHTS, MAX_THREADS
from phibuild.backends.llamacpp.metadata import general_name, imatrix_values, model_values
from phibuild.backends.llamacpp.quantizer import Quantize, choose
from phibuild.backends.llamacpp.tokenizer import check
from phibuild.backends.llamacpp.vocabulary import Vocabulary, read_vocabulary
from phibuild.worker.building import Build, Check
from phibuild.worker.codes import coded_weights
from phibuild.worker.companions import read_json
from phibuild.worker.costs import Output
from phibuild.worker.json_values import JsonObject
from phibuild.worker.passes import Chunk, Steps, Store, find_tensors, stream
from phibuild.worker.protocol import Contents, WorkerError
from phibuild.worker.requests import BuildItem
from phibuild.worker.safetensors import TensorInfo
from phibuild.worker.tokenizer_check import Facts, TokenizerCheck

_SOURCE_TYPES = ("BF16", "F16", "F32")
_STEPS = Steps(CHUNK_WEIGHTS)
_TOO_LARGE = {"F16": 65520.0, "F32": math.inf}
"""Where the types that are no blocks end: half precision rounds smaller values to 65504."""

Opened = tuple[Output, GgufFile]


class LlamaCppBuilder:
    """See phibuild.worker.building.Builder."""

    def __init__(self) -> None:
        ggml.library()
        self._read = functools.cache(read_importance)  # outputs of one matrix share its arrays
        self._vocabulary: Vocabulary
        self._generation: JsonObject = {}

    def prepare(self, build: Build[GgufFile]) -> None:
        build.report.stage("reading the tokenizer")
        self._vocabulary = read_vocabulary(build.facts, build.source, build.arch.vocab_size)
        self._generation = read_json(build.source / "generation_config.json", optional=True)

    def open(self, build: Build[GgufFile], output: Output) -> GgufFile:
        variant = output.request["variant"]
        type, vocabulary = variant["options"]["type"], self._vocabulary
        importance = self._importance(output.request)
        name = general_name(build.model, strips_after_special=vocabulary.strips_after_special)
        values = model_values(build.arch, type, name, self._generation)
        stored = variant_tensors(build.arch, variant["options"])
        if kind := variant["options"].get("kv_cache"):
            values.append(Value(cache.KEY, "str", kind))
        if importance is not None:
            values += imatrix_values(importance.matrix, variant["options"].get("imatrix_file"))
        file = GgufFile(
            output.folder / f"model-{variant['name']}.gguf",
            [*values, *vocabulary.values],
            stored,
            {
                f"{ROPE_FACTORS}long.weight": build.arch.rope.long,
                f"{ROPE_FACTORS}short.weight": build.arch.rope.short,
            },
            importance.of(stored) if importance is not None else {},
            coded_weights(output.request),
        )
        file.open()
        return file

    def _importance(self, item: BuildItem) -> Importance | None:
        """Return the importance matrix that a variant is made with, if it is made with one."""
        place = item.get("activations") or item.get("file")
        return self._read(Path(place), item["variant"]["options"]["imatrix"]) if place else None

    def convert(self, build: Build[GgufFile], outputs: Sequence[Opened]) -> None:
        sources = find_tensors(build.source, build.arch.tensors(), _SOURCE_TYPES)
        with build.loading():
            stored = [tensor for _, file in outputs for tensor in file.tensors]
            quantize = choose(stored, build.report.stage)

        def stores() -> Store:
            return _Encoder(build, outputs, quantize).store

        threads = min(build.threads, MAX_THREADS)
        stream(sources, _STEPS, stores, build.left, threads, build.report)

    def close(self, kept: GgufFile) -> None:
        kept.close()

    def checker(self) -> Check:
        def run(folder: Path, facts: Facts) -> TokenizerCheck:
            return check(model_file(folder), self._vocabulary)

        return run

    def inspect(self, folder: Path) -> Contents:
        return inspect(folder)


@dataclass(frozen=True)
class _Rows:
    """A chunk of the tensor `source` as it is stored and as float32, and the largest absolute value
    in it: NaN if there is one."""

    source: TensorInfo
    raw: ggml.Bytes
    wide: ggml.Floats
    largest: float


class _Encoder:
    """One thread's: room for a chunk as float32 and as it is stored."""

    def __init__(
        self, build: Build[GgufFile], outputs: Sequence[Opened], quantize: Quantize
    ) -> None:
        self._build, self._outputs, self._quantize = build, outputs, quantize
        self._wide = np.empty(0, np.float32)
        self._out = np.empty(0, np.uint8)

    def store(self, chunk: Chunk) -> None:
        """Widen a chunk and write it to all files that have not failed."""
        source = chunk.tensor
        raw = np.frombuffer(chunk.data, np.uint8)
        weights = chunk.rows * math.prod(source.shape[1:])
        if self._wide.size < weights:
            self._wide = np.empty(weights, np.float32)
            self._out = np.empty(4 * weights, np.uint8)
        wide = self._wide[:weights]
        ggml.widen(raw, source.dtype, wide)
        rows = _Rows(source, raw, wide, float(np.maximum(wide.max(), -wide.min())))
        # Files that weigh a matrix's errors alike hold the same array.
        alike: dict[tuple[str, int], list[Opened]] = {}
        for output, file in self._outputs:
            kind = file.tensor(source.name).kind
            if output.error is None and (coded := file.coded_for(source.name)):
                with self._build.costs.of(output):
                    on_grid = coded.rows(source.name, chunk.first, chunk.rows)
                    blocks = coded_blocks(kind, on_grid)
                    file.write_rows(source.name, chunk.first, blocks.data)
            elif output.error is None:
                weighed = id(file.importance.get(source.name))
                alike.setdefault((kind, weighed), []).append((output, file))
        for (kind, _), some in alike.items():
            importance = some[0][1].importance.get(source.name)
            data: memoryview | None = None
            with self._build.costs.of(*(output for output, _ in some)):
                data = self._encode(rows, kind, importance)
            for output, file in some:
                if data is not None:
                    with self._build.costs.of(output):
                        file.write_rows(source.name, chunk.first, data)

    def _encode(self, rows: _Rows, kind: str, importance: ggml.Floats | None) -> memoryview:
        """Return a chunk's rows in type `kind`. Raises WorkerError where a value does not
        survive."""
        source, wide, largest = rows.source, rows.wide, rows.largest
        if kind == source.dtype:
            data = rows.raw
        elif kind == "F32":
            data = wide.view(np.uint8)
        else:
            columns = source.shape[-1]
            data = self._out[: self._quantize(kind, wide, columns, self._out, importance)]
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
