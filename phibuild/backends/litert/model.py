"""A LiteRT model while it is written: graphs of operators over tensors, and where weights lie.

Weights lie behind the flatbuffer, as ai-edge-quantizer puts them too: a buffer of the schema has
their `offset` from the file's begin and their `size`, so that a model may be larger than the 2 GB
of a flatbuffer, and can be written in pieces.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

StoredTensor: TypeAlias = Any
"""A tensor as the schema's reader gives it (TensorT)."""
Buffer: TypeAlias = "bytes | memoryview | mmap.mmap"
_IDENTIFIER = b"TFL3"
_VERSION = 3
_ALIGNMENT = 64
"""Of a weight in the file: a line of the cache."""
_NUMPY = {np.dtype(np.float32): "FLOAT32", np.dtype(np.int32): "INT32"}
# Version of an operator where it is not the first one, as the schema's kernels register them: 5 is
# FULLY_CONNECTED without a bias, and with a rank that is kept.
_OPERATOR_VERSIONS = {"FULLY_CONNECTED": 5}
_MIN_RUNTIME = b"2.9.0"


@dataclass(eq=False)
class Place:
    """Where a weight will lie: `nbytes` from `offset` on, which `Model.pack` sets."""

    nbytes: int
    buffer: int
    offset: int = 1  # not 0: the flatbuffer leaves that out, and would change its size


class Model:
    """A model of several graphs that share weights and constants."""

    def __init__(self, description: str) -> None:
        self._description = description
        self._buffers = [schema.BufferT()]  # the first is empty by convention
        self._codes: dict[str, int] = {}
        self._constants: dict[bytes, int] = {}
        self._places: list[Place] = []
        self._graphs: list[Graph] = []
        self._stored = schema.ModelT(operatorCodes=[], subgraphs=[], signatureDefs=[], metadata=[])
        """What was there before."""

    @classmethod
    def read(cls, data: Buffer, begin: int) -> Model:
        """Return the model whose flatbuffer begins there in `data`, to be added to: its weights
        keep their order. Offsets of places are those that they have in its file."""
        stored = schema.ModelT.InitFromPackedBuf(data, begin)
        model = cls((stored.description or b"").decode())
        model._stored = stored
        model._buffers = stored.buffers
        for number, buffer in enumerate(stored.buffers):
            if buffer.offset > 1:
                place = Place(buffer.size, number, buffer.offset)
                model._places.append(place)
        model._places.sort(key=lambda place: place.offset)
        return model

    @property
    def weights_begin(self) -> int:
        """Where the first weight lies."""
        return self._places[0].offset

    def stored_tensors(self, graph: str) -> dict[str, StoredTensor]:
        """Return the tensors with names of a graph of a model that was read."""
        signature = next(
            one for one in self._stored.signatureDefs if one.signatureKey.decode() == graph
        )
        tensors = self._stored.subgraphs[signature.subgraphIndex].tensors
        return {tensor.name.decode(): tensor for tensor in tensors if tensor.name}

    def graph(self, name: str) -> Graph:
        """Add a graph, which is a signature of this name."""
        graph = Graph(self, name)
        self._graphs.append(graph)
        return graph

    def place(self, nbytes: int) -> Place:
        """Give a weight room in the file, behind those before it."""
        place = Place(nbytes, len(self._buffers))
        self._buffers.append(schema.BufferT(size=nbytes))
        self._places.append(place)
        return place

    def constant(self, data: bytes) -> int:
        """Return the buffer of a small constant; equal ones are there once."""
        if data not in self._constants:
            self._constants[data] = len(self._buffers)
            self._buffers.append(schema.BufferT(data=np.frombuffer(data, np.uint8)))
        return self._constants[data]

    def code(self, operator: str) -> int:
        """Return the number of an operator's code."""
        before = len(self._stored.operatorCodes)
        return self._codes.setdefault(operator, before + len(self._codes))

    def pack(self) -> tuple[bytes, int]:
        """Return the flatbuffer, with what the quantization of its tensors is by now, and the size
        of the whole file; sets where weights lie."""
        head = self._packed()
        end = len(head)
        for place in self._places:
            place.offset = -(-end // _ALIGNMENT) * _ALIGNMENT
            end = place.offset + place.nbytes
        final = self._packed()
        assert len(final) == len(head)
        return final, end

    def _packed(self) -> bytes:
        for place in self._places:
            self._buffers[place.buffer].offset = place.offset
        stored, first = self._stored, len(self._stored.subgraphs)
        buffers, said = list(self._buffers), list(stored.metadata)
        if not said:
            said = [schema.MetadataT(name="min_runtime_version", buffer=len(buffers))]
            buffers.append(schema.BufferT(data=_padded(_MIN_RUNTIME)))
        model = schema.ModelT(
            version=_VERSION,
            description=self._description,
            operatorCodes=[*stored.operatorCodes, *map(_code, self._codes)],
            subgraphs=[*stored.subgraphs, *(graph.packed() for graph in self._graphs)],
            signatureDefs=[
                *stored.signatureDefs,
                *(graph.signature(number) for number, graph in enumerate(self._graphs, first)),
            ],
            buffers=buffers,
            metadata=said,
        )
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(model.Pack(builder), file_identifier=_IDENTIFIER)
        return bytes(builder.Output())


@dataclass
class Graph:
    """One graph: its tensors are numbers."""

    model: Model
    name: str
    _tensors: list[Any] = field(default_factory=list)
    _operators: list[Any] = field(default_factory=list)
    _inputs: dict[str, int] = field(default_factory=dict)
    _outputs: dict[str, int] = field(default_factory=dict)
    _known: dict[tuple[bytes, tuple[int, ...], str], int] = field(default_factory=dict)

    def shape(self, tensor: int) -> tuple[int, ...]:
        return tuple(int(size) for size in self._tensors[tensor].shape)

    def input(self, name: str, shape: Sequence[int], kind: str = "FLOAT32") -> int:
        """Add an input of the signature."""
        self._inputs[name] = self.tensor(f"{self.name}_{name}", shape, kind)
        return self._inputs[name]

    def output(self, name: str, tensor: int) -> None:
        """Have a tensor be an output of the signature."""
        self._outputs[name] = tensor

    def constant(self, values: NDArray[Any]) -> int:
        """Return a small constant, fp32 or int32; equal ones are there once."""
        data, kind = values.tobytes(), _NUMPY[values.dtype]
        key = (data, values.shape, kind)
        if key not in self._known:
            buffer = self.model.constant(data)
            self._known[key] = self.tensor("", values.shape, kind, buffer)
        return self._known[key]

    def ints(self, *values: int) -> int:
        """Return a vector of int32."""
        return self.constant(np.asarray(values, np.int32))

    def tensor(
        self,
        name: str,
        shape: Sequence[int],
        kind: str = "FLOAT32",
        buffer: int = 0,
        quantization: object = None,
    ) -> int:
        """Add a tensor: of a buffer, or one that an operator makes."""
        number = len(self._tensors)
        self._tensors.append(
            schema.TensorT(
                shape=np.asarray(shape, np.int32),
                type=getattr(schema.TensorType, kind),
                buffer=buffer,
                name=name or f"{self.name}_{number}",
                quantization=quantization,
            )
        )
        return number

    def apply(
        self,
        operator: str,
        inputs: Sequence[int],
        shape: Sequence[int],
        options: object = None,
        kind: str = "FLOAT32",
    ) -> int:
        """Add an operator and return its output."""
        result = self.tensor("", shape, kind)
        name = type(options).__name__.removesuffix("T")
        self._operators.append(
            schema.OperatorT(
                opcodeIndex=self.model.code(operator),
                inputs=np.asarray(inputs, np.int32),
                outputs=np.asarray([result], np.int32),
                builtinOptionsType=getattr(schema.BuiltinOptions, name) if options else 0,
                builtinOptions=options,
            )
        )
        return result

    def packed(self) -> object:
        """Return the graph as the schema has it."""
        return schema.SubGraphT(
            name=self.name,
            tensors=self._tensors,
            inputs=np.asarray(list(self._inputs.values()), np.int32),
            outputs=np.asarray(list(self._outputs.values()), np.int32),
            operators=self._operators,
        )

    def signature(self, number: int) -> object:
        """Return its signature; `number` is the graph's."""

        def maps(tensors: dict[str, int]) -> list[object]:
            return [
                schema.TensorMapT(name=name, tensorIndex=tensor)
                for name, tensor in sorted(tensors.items())
            ]

        return schema.SignatureDefT(
            signatureKey=self.name,
            inputs=maps(self._inputs),
            outputs=maps(self._outputs),
            subgraphIndex=number,
        )


def _code(name: str) -> object:
    number = getattr(schema.BuiltinOperator, name)
    return schema.OperatorCodeT(
        builtinCode=number,
        deprecatedBuiltinCode=min(number, 127),  # what older readers look at, a byte
        version=_OPERATOR_VERSIONS.get(name, 1),
    )


def _padded(text: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(text.ljust(16, b"\0"), np.uint8)
