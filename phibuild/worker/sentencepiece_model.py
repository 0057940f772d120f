"""The pieces of a sentencepiece model file (tokenizer.model). Standard library only.

A serialized protocol buffer (sentencepiece_model.proto): ModelProto has SentencePiece as its
repeated field 1; that has the text as field 1, the score as field 2 and the type as field 3.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_FLOAT = struct.Struct("<f")
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


class _Part:
    """Numbers of fields: of the pieces of a model, and of what a piece has."""

    PIECE = 1
    TEXT, SCORE, TYPE = 1, 2, 3


class Piece(NamedTuple):
    """A piece by its id: its text, its score (log probability, or minus its rank), its type."""

    text: str
    score: float
    type: int


def read_pieces(path: Path) -> list[Piece]:
    """Return the pieces of a model file, in the order of their ids. Raises ValueError if it is
    none, OSError if it cannot be read."""
    pieces = []
    for field in _fields(path.read_bytes()):
        match field:
            case _Part.PIECE, bytes(message):
                pieces.append(_piece(message))
    if not pieces:
        raise ValueError("no sentencepiece model: it has no pieces")
    return pieces


def _piece(message: bytes) -> Piece:
    found = dict(_fields(message))  # of a field that is there twice the last counts
    text, score, type = (found.get(field) for field in (_Part.TEXT, _Part.SCORE, _Part.TYPE))
    if isinstance(score, bytes) and len(score) != _FLOAT.size:
        raise ValueError("no sentencepiece model: a score that is no float")
    return Piece(
        text.decode() if isinstance(text, bytes) else "",
        _FLOAT.unpack(score)[0] if isinstance(score, bytes) else 0.0,
        type if isinstance(type, int) else NORMAL,
    )


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield number and value of each field of a message: numbers as such, the others as bytes."""
    at, end = 0, len(data)
    while at < end:
        key, at = _number(data, at)
        field, kind = key >> 3, key & 7
        if kind == _VARINT:
            number, at = _number(data, at)
            yield field, number
            continue
        if kind == _LENGTH:
            length, at = _number(data, at)
        elif kind in (_FIXED32, _FIXED64):
            length = 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"no sentencepiece model: wire type {kind}")
        start, at = at, at + length
        if field == 0 or at > end:
            raise ValueError("no sentencepiece model: it ends within a field")
        yield field, data[start:at]


def _number(data: bytes, at: int) -> tuple[int, int]:
    """Return the variable-length number at an offset, and the offset after it."""
    if at < len(data) and data[at] < 0x80:  # most have one byte
        return data[at], at + 1
    number = shift = 0
    while at < len(data) and shift < 64:
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7
    raise ValueError("no sentencepiece model: it ends within a number")
