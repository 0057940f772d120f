"""Where a variant's weights lie in its program: by type and shape, their bytes are to come."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from phibuild.backends.executorch import flatc
from phibuild.backends.executorch.graph import graphs, parts, small_factors
from phibuild.backends.executorch.layout import (
    EMBEDDING,
    PREFILL_TOKENS,
    embedding_encoding,
    factor_encoding,
    factors,
)
from phibuild.backends.executorch.method import (
    EPS,
    FORWARD,
    LOGITS,
    method,
    rope_tables,
    scales_name,
)
from phibuild.backends.executorch.program import Segments, fact, with_header
from phibuild.backends.executorch.xnnpack import SCALES, payload
from phibuild.worker.architecture import Architecture
from phibuild.worker.encodings import Encoding
from phibuild.worker.floats import NUMPY_TYPES, widen
from phibuild.worker.json_values import JsonDict
from phibuild.worker.requests import Options
from phibuild.worker.safetensors import TensorInfo
from phibuild.worker.tokenizer_check import Facts


@dataclass(frozen=True)
class Place:
    """Where a matrix is stored, how, and where its scales are. Offsets are of the file."""

    how: Encoding
    data: int
    scales: int


class Layout:
    """A variant's file: what is in it but for matrices (`pieces`, by offset), where these go
    (`places`, by tensor; an embedding that is the output layer, too, has two), and its size."""

    def __init__(
        self,
        tensors: Mapping[str, TensorInfo],
        arch: Architecture,
        options: Options,
        facts: Facts,
    ) -> None:
        self._tensors, self._arch, self._options = tensors, arch, options
        self._segments = Segments()
        self._numbers: dict[str, int] = {}
        self._pieces: dict[int, bytes] = {}
        embedding = self._constants()
        documents = [graph.document() for graph in graphs(arch, options)]
        numbers = []
        for graph in flatc.write(flatc.XNNPACK, documents):
            own = payload(graph)
            numbers.append(self._segments.add(len(own)))
            self._pieces[self._segments.places[-1][0]] = own
        self._small()
        matrices = list(self._matrices())
        plans = [
            method(arch, options, name, self._numbers, numbers).document()
            for name in (FORWARD, LOGITS)
        ]
        document = self._segments.document(plans + list(self._facts(facts)))
        (flat,) = flatc.write(flatc.PROGRAM, [document])
        head = with_header(flat, self._segments.end)
        begin = len(head)
        self.size = begin + self._segments.end
        self.pieces = {0: head} | {begin + at: data for at, data in self._pieces.items()}
        self.places: dict[str, list[Place]] = {}
        for name, how, data, scales in [embedding, *matrices]:
            self.places.setdefault(name, []).append(Place(how, begin + data, begin + scales))

    def _constants(self) -> tuple[str, Encoding, int, int]:
        arch, how = self._arch, embedding_encoding(self._options)
        shape = (arch.vocab_size, arch.hidden_size)
        self._numbers[EMBEDDING] = self._segments.constant(how.data_bytes(shape))
        if how.is_integer:
            number = self._segments.constant(how.scale_bytes(shape))
            self._numbers[scales_name(EMBEDDING)] = number
        data, scales = self._segments.constants[1], self._segments.constants[-1]
        eps = np.asarray([arch.norm_eps], np.float32)
        vectors = {
            info.name: _vector(info) for info in self._tensors.values() if len(info.shape) == 1
        }
        for name, values in {
            **vectors, EPS: eps, **rope_tables(arch, self._options["context"])
        }.items():  # fmt: skip
            self._numbers[name] = self._segments.constant(values.nbytes)
            self._pieces[self._segments.constants[-1]] = values.tobytes()
        return EMBEDDING, how, data, scales

    def _small(self) -> None:
        for name, values in small_factors(self._arch).items():
            offset = self._segments.room(values.nbytes)
            self._segments.name(offset, {name: values.nbytes})
            self._pieces[offset] = values.tobytes()

    def _matrices(self) -> Iterator[tuple[str, Encoding, int, int]]:
        for name, shape in factors(self._arch):
            how, own = factor_encoding(name, self._options), parts(self._arch, name, shape[0])
            shapes = {part: (rows, shape[1]) for part, rows in own.items()}
            data = self._segments.room(how.data_bytes(shape))
            self._segments.name(data, {one: how.data_bytes(of) for one, of in shapes.items()})
            scales = data
            if how.is_integer:
                scales = self._segments.room(how.scale_bytes(shape))
                sizes = {one + SCALES: how.scale_bytes(of) for one, of in shapes.items()}
                self._segments.name(scales, sizes)
            yield name, how, data, scales

    def _facts(self, facts: Facts) -> Iterator[JsonDict]:
        """Yield what extension/llm/runner asks a model, as the exporter answers it."""
        arch, context = self._arch, self._options["context"]
        answers: dict[str, Sequence[int]] = {
            "get_max_seq_len": [PREFILL_TOKENS],
            "get_max_context_len": [context],
            "get_n_layers": [arch.layers],
            "get_vocab_size": [arch.vocab_size],
            "use_kv_cache": [1],
            "use_sdpa_with_kv_cache": [1],
            "enable_dynamic_shape": [1],
            "get_bos_id": _start(facts),
            "get_eos_ids": facts.stops,
        }
        for name, values in answers.items():
            if values:
                yield fact(name, values)


def _start(facts: Facts) -> list[int]:
    """Return the id that begins texts, if the model has one."""
    bos = facts.special.get("bos")
    return facts.start[:1] or ([] if bos is None else [bos])


def _vector(info: TensorInfo) -> NDArray[np.float32]:
    """Return a norm's weights, fp32."""
    stored = np.fromfile(info.path, NUMPY_TYPES[info.dtype], info.parameters, offset=info.offset)
    return widen(stored, info.dtype)
