"""Encode the front of a GGUF file. Standard library only.

Format (ggml's docs/gguf.md), little-endian: magic, version 3, number of tensors, number of
key/values; key/values; tensor infos (name, dimensions innermost first, type, offset from the start
of the data); then the data, which starts and continues at multiples of 32 bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from phibuild.backends.llamacpp.layout import BLOCK_TYPES, Tensor

ALIGNMENT = 32
_VERSION = 3
ValueType = Literal["u32", "i32", "f32", "bool", "str", "array[i32]", "array[f32]", "array[str]"]
_TYPE_IDS = {"u32": 4, "i32": 5, "f32": 6, "bool": 7, "str": 8, "array": 9}
_FORMATS = {"u32": "<I", "i32": "<i", "f32": "<f", "bool": "<?"}


@dataclass(frozen=True)
class Value:
    """One key/value. Strings are str or UTF-8 bytes."""

    key: str
    type: ValueType
    value: object


def align(size: int) -> int:
    """Return `size` rounded up to the alignment."""
    return (size + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT


def encode_header(values: Sequence[Value], tensors: Sequence[Tensor]) -> bytes:
    """Return all bytes of the file before its data. Raises ValueError if a key occurs twice."""
    keys = [value.key for value in values]
    if len(set(keys)) != len(keys):
        raise ValueError(f"a GGUF key occurs twice among {keys}")
    out = bytearray(b"GGUF" + struct.pack("<IQQ", _VERSION, len(tensors), len(values)))
    for value in values:
        out += encode_value(value)
    for tensor, offset in zip(tensors, data_offsets(tensors), strict=True):
        out += encode_tensor_info(tensor, offset)
    return bytes(out) + bytes(align(len(out)) - len(out))


def data_offsets(tensors: Iterable[Tensor]) -> list[int]:
    """Return where each tensor's data starts, in bytes from the start of the data."""
    offsets, position = [], 0
    for tensor in tensors:
        offsets.append(position)
        position += align(tensor.nbytes)
    return offsets


def data_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of all data with its padding."""
    return sum(align(tensor.nbytes) for tensor in tensors)


def encode_value(value: Value) -> bytes:
    """Return the bytes of one key/value."""
    key = _string(value.key)
    if not value.type.startswith("array"):
        return key + struct.pack("<I", _TYPE_IDS[value.type]) + _scalar(value.type, value.value)
    assert isinstance(value.value, Sequence)
    item = value.type[len("array[") : -1]
    start = struct.pack("<IIQ", _TYPE_IDS["array"], _TYPE_IDS[item], len(value.value))
    if item == "str":
        return key + start + b"".join(map(_string, value.value))
    packed = struct.pack(f"<{len(value.value)}{_FORMATS[item][1]}", *value.value)
    return key + start + packed


def encode_tensor_info(tensor: Tensor, offset: int) -> bytes:
    """Return the bytes of one tensor info."""
    dimensions = tuple(reversed(tensor.shape))
    return (
        _string(tensor.name)
        + struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)
        + struct.pack("<IQ", BLOCK_TYPES[tensor.kind].id, offset)
    )


def _scalar(type: str, value: object) -> bytes:
    return _string(value) if type == "str" else struct.pack(_FORMATS[type], value)


def _string(text: object) -> bytes:
    raw = text if isinstance(text, bytes) else str(text).encode()
    return struct.pack("<Q", len(raw)) + raw
