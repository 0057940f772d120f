"""Core AI's operations as MLIR text, with their types worked out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from phibuild.backends.coreai.layout import NUMBERS
from phibuild.worker.encodings import Encoding

Size = int | None
"""Of a dimension; None where a call decides it."""
MOST = 2**31 - 1
"""The end of a slice that goes as far as there is."""
NAMELESS = "without."
"""What goes before a resource's name while it has no bytes: a name with bytes is another."""
SCALES = ".scales"
"""What follows a matrix's name in that of its scales."""


@dataclass(frozen=True)
class Value:
    """A tensor: its name, its shape, and the type of its numbers (f16, f32, si32, ui32, i1)."""

    name: str
    shape: tuple[Size, ...]
    kind: str

    @property
    def type(self) -> str:
        sizes = "".join(f"{'?' if size is None else size}x" for size in self.shape)
        return f"tensor<{sizes}{self.kind}>"


@dataclass
class Block:
    """The operations of a graph. Each method adds one and returns its result."""

    lines: list[str] = field(default_factory=list)
    _constants: dict[str, Value] = field(default_factory=dict)
    _count: int = 0

    def integers(self, values: int | Sequence[int], kind: str = "si32") -> Value:
        """Return integers: of no dimension, or of one."""
        shape = () if isinstance(values, int) else (len(values),)
        text = str(values) if isinstance(values, int) else f"[{', '.join(map(str, values))}]"
        if shape == (0,):
            text = ""
        return self._constant(text, Value("", shape, kind))

    def number(self, value: float, kind: str) -> Value:
        return self._constant(f"{value:.9e}", Value("", (), kind))

    def filled(self, value: int, shape: tuple[int, ...], kind: str) -> Value:
        """Return a constant whose numbers are all the same."""
        text = str(value) if kind[:2] in ("si", "ui") else f"{value:.1f}"
        return self._constant(text, Value("", shape, kind))

    def nested(self, text: str, shape: tuple[int, ...], kind: str) -> Value:
        """Return a constant of the numbers that `text` lists."""
        return self._constant(text, Value("", shape, kind))

    def resource(self, name: str, shape: tuple[int, ...], kind: str) -> Value:
        """Return a constant whose bytes are kept under a name."""
        value = self._new(shape, kind)
        self.add(f"{value.name} = coreai.constant dense_resource<{NAMELESS}{name}> : {value.type}")
        return value

    def add(self, line: str) -> None:
        self.lines.append("    " + line)

    def new_name(self) -> str:
        self._count += 1
        return f"%{self._count}"

    def unary(self, operation: str, x: Value, arrow: str = "->") -> Value:
        """cos, sin, rsqrt, not, silu."""
        y = self._new(x.shape, x.kind)
        source = f"({x.type})" if operation == "silu" else x.type
        self.add(f"{y.name} = coreai.{operation} {x.name} : {source} {arrow} {y.type}")
        return y

    def cast(self, x: Value, kind: str) -> Value:
        if x.kind == kind:
            return x
        y = self._new(x.shape, kind)
        self.add(f"{y.name} = coreai.cast {x.name} : {x.type} to {y.type}")
        return y

    def binary(self, operation: str, x: Value, y: Value, kind: str | None = None) -> Value:
        """mul, add, sub, greater: the smaller shape is repeated."""
        z = self._new(_broadcast(x.shape, y.shape), kind or x.kind)
        return self._decomposable(operation, x, y, z)

    def matmul(self, x: Value, y: Value) -> Value:
        z = self._new((*_broadcast(x.shape[:-2], y.shape[:-2]), x.shape[-2], y.shape[-1]), x.kind)
        return self._decomposable("batch_matmul", x, y, z)

    def transpose(self, x: Value, order: Sequence[int]) -> Value:
        y = self._new(tuple(x.shape[axis] for axis in order), x.kind)
        return self._call("transpose", y, x, self.integers(order, "ui32"))

    def reshape(self, x: Value, sizes: Value, shape: tuple[Size, ...]) -> Value:
        return self._call("reshape", self._new(shape, x.kind), x, sizes)

    def expand(self, x: Value, axis: int) -> Value:
        place = axis if axis >= 0 else len(x.shape) + 1 + axis
        y = self._new((*x.shape[:place], 1, *x.shape[place:]), x.kind)
        return self._call("expand_dims", y, x, self.integers([axis]), arrow="to")

    def shrink(self, x: Value) -> Value:
        """Return x without its first dimension, which is 1."""
        y = self._new(x.shape[1:], x.kind)
        return self._call("shrink_dims", y, x, self.integers([0]), arrow="to")

    def slice(self, x: Value, first: Value, end: Value, shape: tuple[Size, ...]) -> Value:
        step = self.integers([1] * len(x.shape))
        return self._call("slice", self._new(shape, x.kind), x, first, end, step)

    def part(self, x: Value, axis: int, first: int, end: int) -> Value:
        """Return what lies from `first` to `end` along an axis."""
        starts, ends, shape = [0] * len(x.shape), [MOST] * len(x.shape), list(x.shape)
        starts[axis], ends[axis], shape[axis] = first, end, end - first
        return self.slice(x, self.integers(starts), self.integers(ends), tuple(shape))

    def concat(self, axis: int, *parts: Value) -> Value:
        shape = list(parts[0].shape)
        sizes = [part.shape[axis] for part in parts]
        shape[axis] = None if None in sizes else sum(size or 0 for size in sizes)
        y = self._new(tuple(shape), parts[0].kind)
        return self._call("concat", y, self.integers(axis), *parts)

    def size(self, x: Value, axis: int) -> Value:
        """Return the size of a dimension [1], si32."""
        sizes = self._new((len(x.shape),), "ui32")
        self._call("get_shape", sizes, x)
        whole = self.cast(sizes, "si32")
        return self.slice(whole, self.integers([axis]), self.integers([axis + 1]), (1,))

    def range(self, first: Value, end: Value) -> Value:
        y = self._new((None,), "si32")
        return self._call("range", y, first, end, self.integers(1))

    def reduce_mean(self, x: Value) -> Value:
        """Return the mean over the last dimension, which becomes 1."""
        y = self._new((*x.shape[:-1], 1), x.kind)
        return self._call("reduce_mean", y, x, self.integers([len(x.shape) - 1]))

    def softmax(self, x: Value) -> Value:
        y = self._new(x.shape, x.kind)
        return self._call("softmax", y, x, self.integers(len(x.shape) - 1))

    def broadcast_in(self, x: Value, sizes: Value, axes: Sequence[int], like: Value) -> Value:
        """Return x with the sizes `sizes` in `axes`, which are those of `like` then."""
        shape = list(x.shape)
        for axis in axes:
            shape[axis] = like.shape[axis]
        y = self._new(tuple(shape), x.kind)
        return self._call("broadcast_in_dims", y, x, sizes, self.integers(axes))

    def gather_rows(self, table: Value, ids: Value) -> Value:
        """Return the rows [..., width] of a table [rows, width] that `ids` [...] name."""
        index = self.expand(ids, len(ids.shape))
        y = self._new((*ids.shape, table.shape[1]), table.kind)
        self.add(
            f"{y.name} = coreai.gather_nd {table.name} at {index.name} : "
            f"({table.type}, {index.type}) to {y.type}"
        )
        return y

    def gather_along(self, x: Value, index: Value, axis: int) -> Value:
        y, place = self._new(index.shape, x.kind), self.integers(axis)
        self.add(
            f"{y.name} = coreai.gather_along_axis {x.name} at {index.name} along {place.name} : "
            f"({x.type}, {index.type}, {place.type}) to {y.type}"
        )
        return y

    def halves(self, x: Value) -> tuple[Value, Value]:
        """Return x cut into two along its last dimension."""
        width = (x.shape[-1] or 0) // 2
        sizes, axis = self.integers([width] * 2, "ui32"), self.integers(len(x.shape) - 1)
        half = Value("", (*x.shape[:-1], width), x.kind)
        name = self.new_name()
        self.add(
            f"{name}:2 = coreai.split {x.name}, {sizes.name}, {axis.name} : ({x.type}, "
            f"{sizes.type}, {axis.type}) -> ({half.type}, {half.type})"
        )
        return Value(f"{name}#0", half.shape, x.kind), Value(f"{name}#1", half.shape, x.kind)

    def invoke(self, graph: str, result: Value, *arguments: Value) -> Value:
        """Call another graph, whose result is like `result`."""
        y = self._new(result.shape, result.kind)
        names = ", ".join(argument.name for argument in arguments)
        types = ", ".join(argument.type for argument in arguments)
        self.add(f"{y.name} = coreai.invoke @{graph}({names}) : ({types}) -> {y.type}")
        return y

    def weight(self, name: str, shape: tuple[int, int], how: Encoding, kind: str) -> Value:
        """Return a matrix of the checkpoint, integers made floats of the type `kind`."""
        stored = NUMBERS[how.kind]
        numbers = self.resource(name, shape, stored)
        if not how.is_integer:
            return numbers
        blocks = (shape[0], how.blocks(shape[1]))
        scales = self.resource(name + SCALES, blocks, kind)
        zeros = self.filled(0, blocks, stored)
        offsets = self.filled(0, blocks, kind)
        y = self._new(shape, kind)
        return self._call("blockwise_shift_scale", y, numbers, scales, zeros, offsets)

    def _decomposable(self, operation: str, x: Value, y: Value, z: Value) -> Value:
        return self._call(f"decomposable.broadcasting_{operation}", z, x, y)

    def _call(self, operation: str, result: Value, *operands: Value, arrow: str = "->") -> Value:
        names = ", ".join(operand.name for operand in operands)
        types = ", ".join(operand.type for operand in operands)
        source = types if operation == "get_shape" else f"({types})"
        self.add(f"{result.name} = coreai.{operation} {names} : {source} {arrow} {result.type}")
        return result

    def _constant(self, text: str, like: Value) -> Value:
        key = f"dense<{text}> : {like.type}"
        if key not in self._constants:
            value = self._new(like.shape, like.kind)
            self.add(f"{value.name} = coreai.constant {key}")
            self._constants[key] = value
        return self._constants[key]

    def _new(self, shape: tuple[Size, ...], kind: str) -> Value:
        return Value(self.new_name(), shape, kind)


def _broadcast(x: tuple[Size, ...], y: tuple[Size, ...]) -> tuple[Size, ...]:
    wide = max(len(x), len(y))
    padded = [(1,) * (wide - len(one)) + one for one in (x, y)]
    return tuple(b if a == 1 else a for a, b in zip(*padded, strict=True))
