"""An ExecuTorch program (.pte): methods, values and instructions, and where its segments lie.

The document is that of schema/program.fbs; the file is laid out as exir/_serialize/_program.py
does: the flatbuffer with a header put into it, then the segments, each on a multiple of 128 bytes.
Segment 0 has the tensors that kernels read; what delegates read has segments and names of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from phibuild.backends.executorch.xnnpack import DELEGATE
from phibuild.worker.json_values import JsonDict

ALIGNMENT = 128
"""Of segments."""
TENSOR_ALIGNMENT = 16
_HEADER_AT, _HEADER = 8, 32
_BYTES = {"FLOAT": 4, "HALF": 2, "LONG": 8}
_OUTPUT = '[1, {"type": null, "context": null, "children_spec": []}]'
_LEAF = '{"type": null, "context": null, "children_spec": []}'


def aligned(offset: int, alignment: int = ALIGNMENT) -> int:
    return -(-offset // alignment) * alignment


class Method:
    """What is run under a name. Values are numbers; a tensor whose shape a call decides has its
    largest shape. Memory for those that are neither constants nor inputs is set aside once."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._values: list[JsonDict] = []
        self._operators: list[tuple[str, str]] = []
        self._delegates: list[int] = []
        self._instructions: list[JsonDict] = []
        self._inputs: list[int] = []
        self._outputs: list[int] = []
        self._memory = 0

    def input(self, kind: str, shape: Sequence[int], *, dynamic: bool = False) -> int:
        self._inputs.append(self._tensor(kind, shape, dynamic=dynamic))
        return self._inputs[-1]

    def room(self, kind: str, shape: Sequence[int], *, dynamic: bool = False) -> int:
        """Return a tensor with memory of its own."""
        nbytes = _BYTES[kind]
        for size in shape:
            nbytes *= size
        offset = self._memory
        self._memory = aligned(offset + nbytes)
        place = {
            "memory_id": 1,
            "memory_offset_low": offset & 0xFFFFFFFF,
            "memory_offset_high": offset >> 32,
        }
        return self._tensor(kind, shape, dynamic=dynamic, allocation_info=place)

    def constant(self, kind: str, shape: Sequence[int], number: int) -> int:
        """Return a tensor of the constant segment: the one whose number this is, from 1 on."""
        return self._tensor(kind, shape, data_buffer_idx=number)

    def value(self, kind: str, **own: object) -> int:
        """Return a value of one of the schema's KernelTypes: Int, Bool, Double, Null."""
        self._values.append({"val_type": kind, "val": own})
        return len(self._values) - 1

    def outputs(self, *values: int) -> None:
        self._outputs += values

    def kernel(self, name: str, overload: str, *values: int) -> None:
        """Call a kernel with these arguments, its output among them."""
        operator = (name, overload)
        if operator not in self._operators:
            self._operators.append(operator)
        own = {"op_index": self._operators.index(operator), "args": list(values)}
        self._instructions.append({"instr_args_type": "KernelCall", "instr_args": own})

    def delegate(self, segment: int, *values: int) -> None:
        """Call XNNPACK's delegate with the graph of a segment."""
        self._delegates.append(segment)
        own = {"delegate_index": len(self._delegates) - 1, "args": list(values)}
        self._instructions.append({"instr_args_type": "DelegateCall", "instr_args": own})

    @property
    def memory(self) -> int:
        """Bytes of all tensors that have memory."""
        return self._memory

    def document(self) -> JsonDict:
        chain = {"inputs": [], "outputs": [], "instructions": self._instructions}
        leaves = ", ".join([_LEAF] * len(self._inputs))
        inputs = (
            '[1, {"type": "builtins.tuple", "context": "null", "children_spec": '
            f'[{{"type": "builtins.tuple", "context": "null", "children_spec": [{leaves}]}}, '
            '{"type": "builtins.dict", "context": "[]", "children_spec": []}]}]'
        )
        return {
            "name": self.name,
            "container_meta_type": {
                "encoded_inp_str": inputs if self._inputs else "",
                "encoded_out_str": _OUTPUT,
            },
            "values": self._values,
            "inputs": self._inputs,
            "outputs": self._outputs,
            "chains": [chain],
            "operators": [{"name": name, "overload": one} for name, one in self._operators],
            "delegates": [
                {"id": DELEGATE, "processed": {"location": "SEGMENT", "index": segment},
                 "compile_specs": []}
                for segment in self._delegates
            ],
            "non_const_buffer_sizes": [0, self._memory] if self._memory else [0],
        }  # fmt: skip

    def _tensor(
        self, kind: str, shape: Sequence[int], *, dynamic: bool = False, **own: object
    ) -> int:
        return self.value(
            "Tensor",
            scalar_type=kind,
            storage_offset=0,
            sizes=list(shape),
            dim_order=list(range(len(shape))),
            shape_dynamism="DYNAMIC_BOUND" if dynamic else "STATIC",
            **own,
        )


def fact(name: str, values: Sequence[int]) -> JsonDict:
    """Return a method that only says numbers: what runners ask a model."""
    method = Method(name)
    method.outputs(*(method.value("Int", int_val=value) for value in values))
    return method.document()


@dataclass
class Segments:
    """What lies behind the flatbuffer, by sizes alone. Offsets count from the first segment on."""

    places: list[tuple[int, int]] = field(default_factory=list)
    """Offset and size of each segment."""
    names: dict[str, int] = field(default_factory=dict)
    """The segments of named data."""
    constants: list[int] = field(default_factory=lambda: [0])
    """Offsets of tensors in segment 0; the first stands for none."""
    end: int = 0

    def constant(self, nbytes: int) -> int:
        """Add a tensor to segment 0, before all other segments; return its number."""
        if len(self.places) > 1:
            raise ValueError("constants come before other segments")
        offset = aligned(self.end, TENSOR_ALIGNMENT)
        self.constants.append(offset)
        self.end = offset + nbytes
        self.places[:] = [(0, self.end)]
        return len(self.constants) - 1

    def add(self, nbytes: int) -> int:
        """Add a segment; return its number."""
        offset = aligned(self.end)
        self.places.append((offset, nbytes))
        self.end = offset + nbytes
        return len(self.places) - 1

    def name(self, offset: int, parts: Mapping[str, int]) -> None:
        """Name consecutive parts, with their sizes, of a room that was set aside."""
        for name, nbytes in parts.items():
            self.names[name] = len(self.places)
            self.places.append((offset, nbytes))
            offset += nbytes

    def room(self, nbytes: int) -> int:
        """Set bytes aside for named parts; return their offset."""
        offset = aligned(self.end)
        self.end = offset + nbytes
        return offset

    def document(self, plans: Sequence[JsonDict]) -> JsonDict:
        """Return what the schema calls Program."""
        return {
            "version": 0,
            "execution_plan": list(plans),
            "backend_delegate_data": [],
            "constant_buffer": [],
            "segments": [{"offset": offset, "size": size} for offset, size in self.places],
            "constant_segment": {"segment_index": 0, "offsets": self.constants},
            "named_data": [
                {"key": name, "segment_index": number} for name, number in self.names.items()
            ],
        }


def with_header(program: bytes, segments_size: int) -> bytes:
    """Return a program's flatbuffer with the header that says where the segments begin: behind it,
    on a multiple of 128 bytes."""
    size = len(program) + _HEADER
    header = b"eh00" + _HEADER.to_bytes(4, "little")
    for number in (size, aligned(size), segments_size):
        header += number.to_bytes(8, "little")
    root = int.from_bytes(program[:4], "little") + _HEADER
    head = root.to_bytes(4, "little") + program[4:_HEADER_AT] + header
    return (head + program[_HEADER_AT:]).ljust(aligned(size), b"\0")


def segments_begin(head: bytes) -> tuple[int, int]:
    """Return where a program's flatbuffer ends, and where its segments begin. Raises ValueError if
    these are not the first bytes of a program."""
    if head[4:6] != b"ET" or head[_HEADER_AT : _HEADER_AT + 4] != b"eh00":
        raise ValueError("it is no ExecuTorch program with segments")
    size, begin = (int.from_bytes(head[at : at + 8], "little") for at in (16, 24))
    return size, begin
