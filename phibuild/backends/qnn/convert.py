"""One pass over a checkpoint, several QNN artifacts: chunks of rows, each to its known place; then
the graphs, and of them the NPU's binaries."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from phibuild.backends.qnn.around import cache_graph, inputs_graph
from phibuild.backends.qnn.decoder import Norms, head_graph, layers_graph
from phibuild.backends.qnn.encode import REMEDY, encode, from_codes
from phibuild.backends.qnn.gate import Gate
from phibuild.backends.qnn.genai import CACHE, CONFIG, PHASES, genai_config, graph_file
from phibuild.backends.qnn.inspect import NPU, inspect, off_npu
from phibuild.backends.qnn.layout import Part, parts
from phibuild.backends.qnn.names import INPUTS
from phibuild.backends.qnn.sessions import compile_graphs, on_cpu
from phibuild.backends.qnn.socs import SOCS
from phibuild.backends.qnn.weights import Places, Stored, data_file
from phibuild.worker.architecture import Architecture
from phibuild.worker.building import Build, Check
from phibuild.worker.codes import CodedWeights, coded_weights, ready_rows
from phibuild.worker.costs import Output
from phibuild.worker.direct_io import OutputFile
from phibuild.worker.floats import NUMPY_TYPES
from phibuild.worker.genai_tokenizer import adapt, check
from phibuild.worker.protocol import Contents
from phibuild.worker.requests import Options
from phibuild.worker.rows import RowBuilder, Rows, to_float16
from phibuild.worker.safetensors import TensorInfo
from phibuild.worker.tokenizer_check import Facts

_GRAPHS = "graphs"
"""The folder of what is compiled, gone when it is."""


class QnnFile:
    """One variant while it is written: its files have their room, the matrices are to come."""

    def __init__(
        self,
        output: Output,
        tensors: Mapping[str, TensorInfo],
        build: Build[QnnFile],
        coded: CodedWeights | None,
    ) -> None:
        self._options: Options = output.request["variant"]["options"]
        self._arch, self._threads = build.arch, build.threads
        self._report, self._item = build.report, output.item
        self._coded, self._folder = coded, output.folder
        self._is_compiled = self._options["form"] == "context"
        self._graphs = output.folder / _GRAPHS if self._is_compiled else output.folder
        self._graphs.mkdir(exist_ok=True)
        self._places = Places(build.arch, self._options)
        self._norms: Norms = {
            name: _vector(info) for name, info in tensors.items() if len(info.shape) == 1
        }
        self._files: dict[str, OutputFile] = {}
        for name, size in self._places.sizes.items():
            self._files[name] = OutputFile(self._graphs / name, size)

    def write(self, tensor: TensorInfo, rows: Rows, first: int) -> None:
        """Store `rows` of a matrix, from row `first` on. Raises WorkerError if a weight cannot be
        stored so."""
        for place in self._places.targets(tensor.name):
            ready = ready_rows(self._coded, rows.name, place.how, first, len(rows.values))
            stored = from_codes(ready) if ready else encode(rows, place.how)
            self._put(place, place.data, stored.data, first)
            if stored.scales is not None:
                self._put(place, place.scales, stored.scales, first)

    def _put(self, place: Stored, begin: int, data: NDArray[np.generic], first: int) -> None:
        flat = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        row = flat.nbytes // len(data)
        self._files[place.file].write(flat.data, begin + first * row)

    def finish(self) -> None:
        """Write the graphs, and compile them where that is asked. Raises OSError for what could not
        be written, WorkerError for what does not compile."""
        for file in self._files.values():
            file.finish()
        self.close()
        self._write_graphs()
        if self._is_compiled:
            self._compile()

    def _write_graphs(self) -> None:
        arch, places, norms = self._arch, self._places, self._norms
        context: int = self._options["context"]
        for part in parts(arch, self._options):
            for phase, tokens in PHASES.items():
                if part.layers:
                    graph = layers_graph(arch, places, norms, part, tokens, context)
                else:
                    graph = head_graph(arch, places, norms, tokens)
                graph.save(self._graphs / _file(phase, part))
        inputs_graph(arch, places, context).save(self._graphs / graph_file(INPUTS))
        cache_graph(arch, context).save(self._graphs / graph_file(CACHE))

    def _compile(self) -> None:
        """Make the NPU's binaries, part by part, and compare each with its graph on the CPU."""
        options, contents = self._options, inspect(self._graphs)
        soc_model, _ = SOCS[options["soc"]]
        inputs = on_cpu(self._graphs / graph_file(INPUTS), self._threads)
        steps: int = options["gate_tokens"]
        gate = Gate(self._arch, options["context"], inputs, steps) if steps else None
        for part in parts(self._arch, options):
            self._report.stage(f"compiling {part.name} for the NPU", item=self._item)
            graphs = [self._graphs / _file(phase, part) for phase in PHASES]
            compiled = compile_graphs(graphs, self._folder, soc_model)
            if gate:
                self._report.stage(f"simulating {part.name}", item=self._item)
                cpu = [on_cpu(path, self._threads) for path in graphs]
                gate.run(part, *(dict(zip(PHASES, side, strict=True)) for side in (cpu, compiled)))
                del cpu
            del compiled
            gc.collect()  # the part's memory
        document = {
            "soc": options["soc"],
            "off_npu": off_npu(self._graphs),
            "gate": gate.result() if gate else None,
            **contents,
        }
        for name in (graph_file(INPUTS), data_file(INPUTS), graph_file(CACHE)):
            (self._graphs / name).rename(self._folder / name)
        shutil.rmtree(self._graphs)
        (self._folder / NPU).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")

    def close(self) -> None:
        """Close the files; again is fine."""
        for file in self._files.values():
            file.close()


class QnnBuilder(RowBuilder[QnnFile]):
    """See phibuild.worker.building.Builder."""

    def begin(self, build: Build[QnnFile], output: Output) -> QnnFile:
        _configure(output, build.arch, build.facts)
        return QnnFile(output, self.tensors, build, coded_weights(output.request))

    def checker(self) -> Check:
        return check

    def inspect(self, folder: Path) -> Contents:
        return inspect(folder)


def _configure(output: Output, arch: Architecture, facts: Facts) -> None:
    """Write genai_config.json, and the tokenizer as onnxruntime-genai has to read it."""
    options: Options = output.request["variant"]["options"]
    stops = facts.stops or [arch.vocab_size]  # none ends it
    start = facts.special.get("bos")
    config = genai_config(arch, options, stops, start, _filling(arch, facts))
    text = json.dumps(config, indent=2)
    (output.folder / CONFIG).write_text(text + "\n", encoding="utf-8")
    adapt(output.folder, facts)


def _filling(arch: Architecture, facts: Facts) -> int:
    """Return the id that fills up a prompt's last window. onnxruntime-genai takes the first such id
    of a prompt for its end, so that it is one that no text has, where there is one."""
    tokenizer = json.loads(facts.tokenizer.read_text(encoding="utf-8"))
    used = {*tokenizer["model"]["vocab"].values()}
    used |= {token["id"] for token in tokenizer.get("added_tokens", ())}
    last = arch.vocab_size - 1
    pad = facts.special.get("pad")
    return last if last not in used or pad is None else pad


def _file(phase: str, part: Part) -> str:
    return graph_file(f"{phase}-{part.name}")


def _vector(info: TensorInfo) -> NDArray[np.float16]:
    """Return a norm's weights in fp16. Raises WorkerError if one does not fit into it."""
    stored = np.fromfile(info.path, NUMPY_TYPES[info.dtype], info.parameters, offset=info.offset)
    return to_float16(Rows(info.name, info.dtype, stored), REMEDY)
