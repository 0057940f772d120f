"""One pass over a checkpoint, several LiteRT models: chunks of rows, each to its known place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from phibuild.backends.litert.bundle import Bundle
from phibuild.backends.litert.encode import encode, from_codes
from phibuild.backends.litert.files import BUNDLE, MODEL, ModelFile
from phibuild.backends.litert.graph import add_graphs
from phibuild.backends.litert.inspect import inspect
from phibuild.backends.litert.metadata import metadata
from phibuild.backends.litert.model import Model
from phibuild.backends.litert.tokenizer import check
from phibuild.backends.litert.weights import PlacedWeights
from phibuild.worker.architecture import Architecture
from phibuild.worker.building import Build, Check
from phibuild.worker.codes import CodedWeights, coded_weights, ready_rows
from phibuild.worker.costs import Output
from phibuild.worker.direct_io import OutputFile
from phibuild.worker.protocol import Contents
from phibuild.worker.requests import Options
from phibuild.worker.rows import RowBuilder, Rows
from phibuild.worker.safetensors import TensorInfo
from phibuild.worker.tokenizer_check import Facts


class LiteRtFile:
    """One variant while it is written: the graphs are there, the matrices are to come."""

    def __init__(
        self,
        output: Output,
        tensors: Mapping[str, TensorInfo],
        arch: Architecture,
        facts: Facts,
        coded: CodedWeights | None,
    ) -> None:
        options: Options = output.request["variant"]["options"]
        self._coded = coded
        model = Model("Phi for LiteRT, by phibuild")
        self._weights = PlacedWeights(model, tensors, options)
        add_graphs(model, arch, self._weights, options["context"])
        _, size = model.pack()  # the places of the weights
        bundle = None
        if options["container"] == "litertlm":
            said = metadata(facts, options["context"])
            bundle = Bundle(said, facts.tokenizer.read_bytes())
        path = output.folder / (BUNDLE if bundle else MODEL)
        begin = bundle.begin if bundle else 0
        self._file = ModelFile(model, OutputFile(path, begin + size), bundle, size)

    def write(self, tensor: TensorInfo, rows: Rows, first: int) -> None:
        """Store `rows` of a matrix, from row `first` on. Raises WorkerError if a weight cannot be
        stored so."""
        name, count = tensor.name, len(rows.values)
        how = self._weights.encoding(name)
        ready = ready_rows(self._coded, name, how, first, count)
        stored = from_codes(ready) if ready else encode(rows, how)
        self._file.write(self._weights.places[name], stored.data, first, tensor.shape[0])
        if stored.scales is None:
            return
        if name in self._weights.row_scales:
            self._weights.row_scales[name][first : first + count] = stored.scales
        else:
            place = self._weights.scale_places[name]
            self._file.write(place, stored.scales, first, tensor.shape[0])

    def finish(self) -> None:
        """Write what is left, and wait until all is there. Raises OSError for what could not be."""
        self._file.finish()

    def close(self) -> None:
        """Close the file; again is fine."""
        self._file.close()


class LiteRtBuilder(RowBuilder[LiteRtFile]):
    """See phibuild.worker.building.Builder."""

    def begin(self, build: Build[LiteRtFile], output: Output) -> LiteRtFile:
        coded = coded_weights(output.request)
        return LiteRtFile(output, self.tensors, build.arch, build.facts, coded)

    def checker(self) -> Check:
        return check

    def inspect(self, folder: Path) -> Contents:
        return inspect(folder)
