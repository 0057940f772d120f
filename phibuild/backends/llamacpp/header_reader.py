"""Decode the front of a GGUF file, which header.py encodes. Standard library only.

Nothing that a file says is believed: each count is held against the bytes that are there.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

from phibuild.backends.llamacpp.header import ALIGNMENT
from phibuild.backends.llamacpp.layout import BLOCK_TYPES

MAGIC = b"GGUF"
_VERSIONS = (2, 3)  # the same layout; 1 had other lengths
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?",
            10: "<Q", 11: "<q", 12: "<d"}  # fmt: skip
_STRING, _ARRAY = 8, 9
_MOST_DIMENSIONS = 4  # GGML_MAX_DIMS
_MOST_ALIGNMENT = 1 << 20
_F32 = BLOCK_TYPES["F32"].id


@dataclass(frozen=True)
class Front:
    """What a file `data` says of itself: numbers, texts and lists of texts by key (no arrays of
    numbers), and by name where tensors lie: type, number of elements, offset from its start."""

    data: bytes
    alignment: int
    values: dict[str, object]
    tensors: dict[str, tuple[int, int, int]]

    def floats(self, name: str) -> bytes:
        """Return the data of an F32 tensor. Raises ValueError if it is of another type, or ends
        after the file, with what is added to reach a multiple of the alignment."""
        kind, elements, offset = self.tensors[name]
        if kind != _F32:
            raise ValueError(f"{name} is not F32")
        if offset + _aligned(4 * elements, self.alignment) > len(self.data):
            raise ValueError(f"{name} ends after the file: cut off, or damaged")
        return self.data[offset : offset + 4 * elements]


def read_front(data: bytes) -> Front:
    """Return what a GGUF file says of itself. Raises ValueError, saying what, for any other bytes,
    and for a front that is cut off."""
    cursor = Cursor(data)
    if cursor.take(len(MAGIC)) != MAGIC:
        raise ValueError("it does not begin with GGUF")
    version, tensors, values = cursor.unpack("<IQQ")
    if version not in _VERSIONS:
        raise ValueError(f"GGUF of version {version}, not {_VERSIONS[-1]}")
    found: dict[str, object] = {}
    for _ in range(values):
        key = _new(cursor.text(), found)
        value = _value(cursor, *cursor.unpack("<I"))
        if value is not None:
            found[key] = value
    infos: dict[str, tuple[int, int, int]] = {}
    for _ in range(tensors):
        name = _new(cursor.text(), infos)
        (dimensions,) = cursor.unpack("<I")
        if dimensions > _MOST_DIMENSIONS:
            raise ValueError(f"{name} has {dimensions} dimensions: damaged")
        shape = cursor.unpack(f"<{dimensions}Q")
        kind, offset = cursor.unpack("<IQ")
        infos[name] = (kind, math.prod(shape), offset)
    alignment = found.get("general.alignment", ALIGNMENT)
    if not isinstance(alignment, int) or not 0 < alignment <= _MOST_ALIGNMENT:
        raise ValueError(f"its alignment is {alignment!r}: damaged")
    start = _aligned(cursor.at, alignment)
    placed = {name: (kind, size, start + at) for name, (kind, size, at) in infos.items()}
    return Front(data, alignment, found, placed)


def _aligned(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


class Cursor:
    """A place `at` in bytes that are read one thing after the other; each raises ValueError where
    they end before it does."""

    def __init__(self, data: bytes) -> None:
        self._data, self.at = data, 0

    @property
    def left(self) -> int:
        return len(self._data) - self.at

    def take(self, size: int) -> bytes:
        """Return so many bytes."""
        if not 0 <= size <= self.left:
            raise ValueError("it ends early: cut off, or damaged")
        self.at += size
        return self._data[self.at - size : self.at]

    def unpack(self, format: str) -> tuple[int, ...]:
        """Return numbers, by struct's words for them."""
        return struct.unpack(format, self.take(struct.calcsize(format)))

    def text(self, length: str = "<Q") -> str:
        """Return a text after its length in bytes."""
        return self.take(*self.unpack(length)).decode("utf-8", "replace")


def _new(name: str, known: dict[str, object] | dict[str, tuple[int, int, int]]) -> str:
    if name in known:
        raise ValueError(f"{name!r} occurs twice: damaged")
    return name


def _value(cursor: Cursor, kind: int) -> object:
    """Return a value, None for an array of numbers."""
    if kind == _STRING:
        return cursor.text()
    if kind == _ARRAY:
        item, count = cursor.unpack("<IQ")
        if item == _STRING:
            return [cursor.text() for _ in range(count)]
        cursor.take(count * struct.calcsize(_scalar(item)))
        return None
    return cursor.unpack(_scalar(kind))[0]


def _scalar(kind: int) -> str:
    if kind not in _SCALARS:
        raise ValueError(f"a value of type {kind}, which GGUF does not have: damaged")
    return _SCALARS[kind]
