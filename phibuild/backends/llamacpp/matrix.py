"""Importance matrices: how much each column's rounding errors weigh, as sums over the tokens of a
text. Standard library only.

llama-imatrix adds up the squares of a matrix's inputs over all tokens (llama.cpp's
tools/imatrix/imatrix.cpp: `collect_imatrix`); lm_head and the embedding have no entry unless it is
told to (`--process-output`). Its files (`save_imatrix`): `NAME.in_sum2` and `NAME.counts`, both
F32, for every matrix NAME, in the order of their names.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from phibuild.backends.llamacpp.header import Value, align, encode_header
from phibuild.backends.llamacpp.layout import Tensor, stored_name
from phibuild.worker.safetensors import read_header

IMATRIX = "imatrix"
"""general.type of such a file."""
SUMS, COUNTS = ".in_sum2", ".counts"
DATASETS, CHUNKS, CHUNK_TOKENS = (
    "imatrix.datasets",
    "imatrix.chunk_count",
    "imatrix.chunk_size",
)


@dataclass(frozen=True)
class Entry:
    """Of one tensor the sums of squared inputs, little-endian float32 [matrices * columns], and the
    tokens that they are of [matrices]: one matrix, but for experts."""

    sums: bytes
    counts: tuple[int, ...]

    @property
    def columns(self) -> int:
        return len(self.sums) // 4


@dataclass(frozen=True)
class ImportanceMatrix:
    """An importance matrix: entries by the tensors' names in GGUF, and what they come from,
    `chunks` of `chunk_tokens` tokens of the texts `datasets`; 0 and () where that is not told."""

    entries: Mapping[str, Entry]
    datasets: tuple[str, ...]
    chunks: int
    chunk_tokens: int


def check(matrix: ImportanceMatrix) -> ImportanceMatrix:
    """Return a matrix. Raises ValueError, saying which entry is at fault, if there is none, or one
    with numbers that no sum of squares has."""
    if not matrix.entries:
        raise ValueError("it has no entries")
    for name, entry in matrix.entries.items():
        if not entry.counts or not entry.columns or entry.columns % len(entry.counts):
            raise ValueError(f"{name}: {entry.columns} sums of {len(entry.counts)} counts")
        for number in struct.unpack(f"<{entry.columns}f", entry.sums):
            if not 0 <= number < math.inf:
                raise ValueError(f"{name}: {number} is no sum of squares")
        if min(entry.counts) < 0:
            raise ValueError(f"{name}: {min(entry.counts)} is no number of tokens")
    return matrix


def misfit(matrix: ImportanceMatrix, tensors: Iterable[Tensor]) -> str | None:
    """Return what a matrix lacks to be of the model that a file's tensors are of (it "has no entry
    for ..."): each matrix of a layer needs one, and all that it has the model's columns. None if
    it may be."""
    for tensor in tensors:
        entry = matrix.entries.get(tensor.name)
        if len(tensor.shape) == 2 and (entry or tensor.name.startswith("blk.")):
            if entry is None:
                return f"has no entry for {tensor.name}"
            if entry.columns != tensor.shape[-1]:
                return f"has {entry.columns:,} columns for {tensor.name}, not {tensor.shape[-1]:,}"
    return None


def read_activations(folder: Path, *datasets: str) -> ImportanceMatrix:
    """Return the matrix that the original's activations in a folder are, over the text `datasets`.
    Raises ValueError if they hold infinity or NaN."""
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    data = (folder / "activations.safetensors").read_bytes()
    entries = {
        stored_name(found.name): Entry(
            data[found.offset : found.offset + found.nbytes], (meta["tokens"],)
        )
        for found in read_header(folder / "activations.safetensors").values()
    }
    return check(
        ImportanceMatrix(entries, datasets, meta["chunks"], meta["tokens"] // meta["chunks"])
    )


def encode_matrix(matrix: ImportanceMatrix) -> bytes:
    """Return the file that llama-imatrix would write."""
    infos, data = [], bytearray()
    for name, entry in sorted(matrix.entries.items()):
        counts = struct.pack(f"<{len(entry.counts)}f", *entry.counts)
        for suffix, raw in ((SUMS, entry.sums), (COUNTS, counts)):
            matrices = (len(entry.counts),) if len(entry.counts) > 1 else ()
            shape = (*matrices, len(raw) // 4 // len(entry.counts))
            infos.append(Tensor(name + suffix, None, shape, "F32"))
            data += raw + bytes(align(len(raw)) - len(raw))
    values = [
        Value("general.type", "str", IMATRIX),
        Value(DATASETS, "array[str]", matrix.datasets),
        Value(CHUNKS, "u32", matrix.chunks),
        Value(CHUNK_TOKENS, "u32", matrix.chunk_tokens),
    ]
    return encode_header(values, infos) + data
