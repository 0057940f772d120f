"""One pass over a checkpoint, several IRs: chunks of rows, each to its known place."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from phibuild.backends.openvino.compression import note_compression
from phibuild.backends.openvino.encode import encode, from_codes
from phibuild.backends.openvino.files import IrFiles
from phibuild.backends.openvino.inspect import CACHE_PRECISION, MODEL_XML, inspect
from phibuild.backends.openvino.ir import build_model
from phibuild.backends.openvino.layout import encoding
from phibuild.backends.openvino.nodes import name_all
from phibuild.backends.openvino.tokenizer import check, convert_tokenizer, copy_tokenizer
from phibuild.backends.openvino.weights import Weights
from phibuild.worker.architecture import Architecture
from phibuild.worker.building import Build, Check
from phibuild.worker.codes import CodedWeights, coded_weights
from phibuild.worker.companions import (
    GENERATION_FILES,
    TOKENIZER_FILES,
    complete_generation_config,
    copy_companions,
)
from phibuild.worker.costs import Output
from phibuild.worker.passes import Steps
from phibuild.worker.protocol import Contents
from phibuild.worker.requests import Options
from phibuild.worker.rows import Rows, stream_matrices, tensors_by_name
from phibuild.worker.safetensors import TensorInfo

# Activations on GPUs are fp16; the plugin divides them by this so that they stay in range
# (the value that optimum-intel sets for text generation).
_ACTIVATIONS_SCALE_FACTOR = "8.0"
# A chunk's arrays fit into a core's cache; two zero points of 4 bits share a byte.
_STEPS = Steps(weights=1 << 17, multiple=2, chunks=32)


class Ir:
    """One variant's IR while it is written: the graph is there, the matrices are to come."""

    def __init__(
        self,
        folder: Path,
        tensors: Mapping[str, TensorInfo],
        arch: Architecture,
        options: Options,
        coded: CodedWeights | None,
    ) -> None:
        self._options, self._coded = options, coded
        weights = Weights(tensors, arch, options)
        model = build_model(arch, weights)
        model.set_rt_info(
            _ACTIVATIONS_SCALE_FACTOR, ["runtime_options", "ACTIVATIONS_SCALE_FACTOR"]
        )
        if options["mode"].startswith("int"):
            note_compression(model, options)
        cache = options.get("kv_cache") or (None if options["mode"].startswith("int") else "f16")
        if cache:
            model.set_rt_info(cache, list(CACHE_PRECISION))
        name_all(model)
        self._names = weights.names
        streamed = {name for names in self._names.values() for name in names}
        self._files = IrFiles(model, folder / MODEL_XML, streamed)

    def write(self, tensor: TensorInfo, rows: Rows, first: int) -> None:
        """Store `rows` of a matrix, from row `first` on. Raises WorkerError if a weight cannot be
        stored so."""
        how = encoding(tensor.name, tensor.shape, self._options)
        coded = self._coded
        if coded and tensor.name in coded and how.is_on(coded.grid):
            parts = from_codes(coded.rows(tensor.name, first, len(rows.values)), how)
        else:
            parts = encode(rows, how)
        for name, data in zip(self._names[tensor.name], parts, strict=True):
            self._files.write(name, data, first, tensor.shape[0])

    def close(self) -> None:
        """Wait until all is written, and close the files. Raises OSError for what could not be."""
        try:
            self._files.finish()
        finally:
            self._files.close()


class OpenVinoBuilder:
    """See phibuild.worker.building.Builder."""

    def __init__(self) -> None:
        self._tensors: dict[str, TensorInfo] = {}

    def prepare(self, build: Build[Ir]) -> None:
        folders = [output.folder for output in build.outputs]
        with tempfile.TemporaryDirectory() as scratch:
            build.report.stage("converting the tokenizer")
            convert_tokenizer(build.source, Path(scratch))
            for folder in folders:
                copy_tokenizer(Path(scratch), folder)
        self._tensors = tensors_by_name(build)

    def open(self, build: Build[Ir], output: Output) -> Ir:
        names = ("config.json", *TOKENIZER_FILES, *GENERATION_FILES)
        copy_companions(build.source, output.folder, names)
        complete_generation_config(output.folder, build.facts.stops)
        build.report.stage("laying out the graph", item=output.item)
        options = output.request["variant"]["options"]
        try:
            coded = coded_weights(output.request)
            return Ir(output.folder, self._tensors, build.arch, options, coded)
        finally:
            gc.collect()  # nodes of a graph hold each other

    def convert(self, build: Build[Ir], outputs: Sequence[tuple[Output, Ir]]) -> None:
        stream_matrices(build, self._tensors, outputs, _STEPS)

    def close(self, kept: Ir) -> None:
        kept.close()

    def checker(self) -> Check:
        return check

    def inspect(self, folder: Path) -> Contents:
        return inspect(folder)
