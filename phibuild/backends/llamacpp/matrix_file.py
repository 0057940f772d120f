"""Read files of importance matrices, as llama-quantize does (llama.cpp's common/imatrix-loader.cpp:
`common_imatrix_load`). Standard library only.

GGUF is what llama-imatrix has written since 2025 (matrix.py), .dat what it wrote before: the number
of entries; of each the length of its name, the name, the calls (chunks) that it comes from, the
number of its sums, and the sums as float32, divided by tokens and multiplied by calls; then, both
optional, the number of chunks and the name of the text after its length. All integers are int32.
"""

from __future__ import annotations

import math
import struct
from functools import cache
from hashlib import sha256
from pathlib import Path

from phibuild.backends.llamacpp.header_reader import MAGIC, Cursor, Front, read_front
from phibuild.backends.llamacpp.matrix import (
    CHUNK_TOKENS,
    CHUNKS,
    COUNTS,
    DATASETS,
    IMATRIX,
    SUMS,
    Entry,
    ImportanceMatrix,
    check,
)
from phibuild.worker.json_values import is_texts

SUFFIXES = (".gguf", ".dat", ".imatrix")
"""How the names of such files end; which format one has, its bytes say."""
_MOST_BYTES = 1 << 27  # a model of 14 billion weights has 5 MB
_MOST_CHUNKS = 1 << 31


def read_matrix(path: Path) -> tuple[ImportanceMatrix, str]:
    """Return the matrix of a file, and the sha256 of its content. Raises OSError if it cannot be
    read, ValueError, saying what is wrong, if it is none."""
    status = path.stat()
    if status.st_size > _MOST_BYTES:
        raise ValueError(f"{status.st_size:,} bytes are too many for one")
    return _read(path, status.st_size, status.st_mtime_ns)


@cache
def _read(path: Path, size: int, mtime_ns: int) -> tuple[ImportanceMatrix, str]:
    data = path.read_bytes()
    return parse(data), sha256(data).hexdigest()


def parse(data: bytes) -> ImportanceMatrix:
    """Return the matrix of a file's content. Raises ValueError, saying what is wrong with it."""
    if data.startswith(MAGIC):
        return check(_from_gguf(read_front(data)))
    try:
        return check(_from_dat(Cursor(data)))
    except ValueError as error:
        raise ValueError(f"it is not GGUF, and as the .dat format before: {error}") from None


def _from_gguf(front: Front) -> ImportanceMatrix:
    values = front.values
    if values.get("general.type", IMATRIX) != IMATRIX:
        raise ValueError(f"its general.type is {values['general.type']!r}")
    for key in (DATASETS, CHUNKS, CHUNK_TOKENS):
        if key not in values:
            raise ValueError(f"it lacks the key {key}")
    names = {
        name.removesuffix(suffix): None
        for name in front.tensors
        for suffix in (SUMS, COUNTS)
        if name.endswith(suffix)
    }
    entries = {}
    for name in names:
        if lacking := [end for end in (SUMS, COUNTS) if name + end not in front.tensors]:
            raise ValueError(f"it lacks the tensor {name}{lacking[0]}")
        raw = front.floats(name + COUNTS)
        counts = struct.unpack(f"<{len(raw) // 4}f", raw)
        if not all(map(math.isfinite, counts)):
            raise ValueError(f"{name}{COUNTS} holds infinity or NaN")
        # std::lround, of what is not negative
        whole = tuple(math.floor(count + 0.5) for count in counts)
        entries[name] = Entry(front.floats(name + SUMS), whole)
    datasets = values[DATASETS]
    texts = tuple(datasets) if is_texts(datasets) else ()
    return ImportanceMatrix(entries, texts, _number(values, CHUNKS), _number(values, CHUNK_TOKENS))


def _number(values: dict[str, object], key: str) -> int:
    value = values[key]
    if not isinstance(value, int) or not 0 <= value < _MOST_CHUNKS:
        raise ValueError(f"its {key} is {value!r}")
    return value


def _from_dat(cursor: Cursor) -> ImportanceMatrix:
    entries = {}
    (number,) = cursor.unpack("<i")
    for _ in range(number):
        name = cursor.text("<i")
        calls, sums = cursor.unpack("<ii")
        # Where there were no calls the sums are taken as they are.
        entries[name] = Entry(cursor.take(4 * sums), (calls or 1,))
    chunks = cursor.unpack("<i")[0] if cursor.left else 0
    text = cursor.text("<i") if cursor.left else ""
    if chunks < 0:
        raise ValueError(f"{chunks} chunks")
    return ImportanceMatrix(entries, (text,) if text else (), chunks, 0)
