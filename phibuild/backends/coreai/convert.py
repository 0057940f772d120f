"""One pass over a checkpoint, several Core AI models: chunks of rows, each to its known place."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from phibuild.backends.coreai import metadata
from phibuild.backends.coreai.asset import METADATA, PROGRAM, Place, write_hash, write_program
from phibuild.backends.coreai.decoder import module, parts
from phibuild.backends.coreai.encode import encode, from_codes
from phibuild.backends.coreai.inspect import inspect
from phibuild.backends.coreai.layout import encoding, float_kind
from phibuild.backends.coreai.mlir import SCALES
from phibuild.backends.coreai.tokenizer import check, write_tokenizer
from phibuild.worker.architecture import Architecture
from phibuild.worker.building import Build, Check
from phibuild.worker.codes import CodedWeights, coded_weights, ready_rows
from phibuild.worker.costs import Output
from phibuild.worker.encodings import Encoding
from phibuild.worker.floats import NUMPY_TYPES, cast
from phibuild.worker.protocol import Contents
from phibuild.worker.requests import Options
from phibuild.worker.rotary import short_frequencies
from phibuild.worker.rows import RowBuilder, Rows, to_float16
from phibuild.worker.safetensors import TensorInfo


@dataclass(frozen=True)
class Part:
    """Rows of a matrix, from `first` on, that are a resource of their own."""

    first: int
    rows: int
    data: Place
    scales: Place | None


class ModelFile:
    """One variant while it is written: its program is there, the matrices are to come."""

    def __init__(
        self,
        output: Output,
        tensors: Mapping[str, TensorInfo],
        arch: Architecture,
        coded: CodedWeights | None,
    ) -> None:
        options: Options = output.request["variant"]["options"]
        self._coded, self._folder = coded, output.folder / metadata.MODEL
        self._folder.mkdir()
        kind = float_kind(options)
        text = module(arch, options, [float(one) for one in short_frequencies(arch)])
        norms = {
            name: _vector(info, kind) for name, info in tensors.items() if len(info.shape) == 1
        }
        path = self._folder / PROGRAM
        places = write_program(text, norms, path)
        self._hows: dict[str, Encoding] = {}
        self._parts: dict[str, list[Part]] = {}
        for name, info in tensors.items():
            if len(info.shape) == 2:
                self._hows[name] = encoding(name, info.shape, options)
                first, self._parts[name] = 0, []
                for part, rows in parts(arch, name, info.shape[0]).items():
                    scales = places.get(part + SCALES)
                    self._parts[name].append(Part(first, rows, places[part], scales))
                    first += rows
        self._file = os.open(path, os.O_WRONLY)

    def write(self, tensor: TensorInfo, rows: Rows, first: int) -> None:
        """Store `rows` of a matrix, from row `first` on. Raises WorkerError if a weight cannot be
        stored so."""
        name, count, how = tensor.name, len(rows.values), self._hows[tensor.name]
        ready = ready_rows(self._coded, name, how, first, count)
        stored = from_codes(ready) if ready else encode(rows, how)
        for part in self._parts[name]:
            start, end = max(first, part.first), min(first + count, part.first + part.rows)
            if start < end:
                mine = slice(start - first, end - first)
                self._put(part.data, stored.data[mine], start - part.first, part.rows)
                if part.scales is not None and stored.scales is not None:
                    self._put(part.scales, stored.scales[mine], start - part.first, part.rows)

    def _put(self, place: Place, data: NDArray[np.generic], row: int, rows: int) -> None:
        flat = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        left, at = memoryview(flat.data), place.offset + place.nbytes // rows * row
        while left:
            done = os.pwrite(self._file, left, at)
            left, at = left[done:], at + done

    def finish(self) -> None:
        """Wait until all is there, and say what it is. Raises OSError for what could not be."""
        os.fsync(self._file)
        write_hash(self._folder)
        (self._folder / METADATA).write_bytes(metadata.asset())

    def close(self) -> None:
        """Close the file; again is fine."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class ModelBuilder(RowBuilder[ModelFile]):
    """See phibuild.worker.building.Builder."""

    def begin(self, build: Build[ModelFile], output: Output) -> ModelFile:
        options: Options = output.request["variant"]["options"]
        write_tokenizer(output.folder, build.facts.stops)
        compression = None if options["mode"].startswith("fp") else options["mode"]
        said = metadata.bundle(build.arch, build.model, options["context"], compression)
        (output.folder / metadata.BUNDLE).write_bytes(said)
        return ModelFile(output, self.tensors, build.arch, coded_weights(output.request))

    def checker(self) -> Check:
        return check

    def inspect(self, folder: Path) -> Contents:
        return inspect(folder)


def _vector(info: TensorInfo, kind: str) -> NDArray[np.generic]:
    """Return a norm's weights in the type that the model is computed in. Raises WorkerError if one
    does not fit into it."""
    stored = np.fromfile(info.path, NUMPY_TYPES[info.dtype], info.parameters, offset=info.offset)
    if kind == "FLOAT16":
        return to_float16(Rows(info.name, info.dtype, stored), "build fp32")
    return cast(stored, info.dtype, "F32")
