"""Files of importance matrices: what they hold, and that none which is damaged gets through."""

from __future__ import annotations

import contextlib
import random
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phibuild.backends.llamacpp.header import Value, encode_header
from phibuild.backends.llamacpp.imatrix import weights
from phibuild.backends.llamacpp.layout import Tensor
from phibuild.backends.llamacpp.matrix import Entry, ImportanceMatrix, encode_matrix, misfit
from phibuild.backends.llamacpp.matrix_file import parse, read_matrix
from support.junk import cut_or_flip

Edit = Callable[[bytes], bytes]


def floats(*numbers: float) -> bytes:
    return struct.pack(f"<{len(numbers)}f", *numbers)


def matrix(*names: str) -> ImportanceMatrix:
    entries = {name: Entry(floats(1, 2, 3, 8), (4,)) for name in names or ("blk.0.a.weight",)}
    return ImportanceMatrix(entries, ("texts.txt",), 2, 2)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def dat(*entries: tuple[str, int, tuple[float, ...]], end: bytes = b"") -> bytes:
    """Return what llama-imatrix --output-format dat writes (`save_imatrix_legacy`)."""
    data = struct.pack("<i", len(entries))
    for name, calls, sums in entries:
        data += struct.pack("<i", len(name)) + name.encode()
        data += struct.pack("<ii", calls, len(sums)) + floats(*sums)
    return data + end


def test_the_file_is_what_llama_imatrix_writes() -> None:
    """Dimensions of 1 at the end are left out, as ggml_n_dims has it."""
    front = b"GGUF" + struct.pack("<IQQ", 3, 2, 4)
    front += text("general.type") + struct.pack("<I", 8) + text("imatrix")
    front += text("imatrix.datasets") + struct.pack("<IIQ", 9, 8, 1) + text("texts.txt")
    front += text("imatrix.chunk_count") + struct.pack("<II", 4, 2)
    front += text("imatrix.chunk_size") + struct.pack("<II", 4, 2)
    front += text("blk.0.a.weight.in_sum2") + struct.pack("<IQIQ", 1, 4, 0, 0)
    front += text("blk.0.a.weight.counts") + struct.pack("<IQIQ", 1, 1, 0, 32)
    data = floats(1, 2, 3, 8) + bytes(16) + floats(4) + bytes(28)
    assert encode_matrix(matrix()) == front + bytes(-len(front) % 32) + data


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=9),
        st.tuples(st.integers(1, 3), st.integers(0, 1 << 20), st.floats(0, 2.0**99, width=32)),
        min_size=1,
        max_size=4,
    ),
    st.lists(st.text(max_size=9), max_size=2),
)
def test_what_is_written_is_read(
    found: dict[str, tuple[int, int, float]], datasets: list[str]
) -> None:
    entries = {
        name: Entry(floats(value, 0.5) * matrices, (count,) * matrices)
        for name, (matrices, count, value) in found.items()
    }
    written = ImportanceMatrix(entries, tuple(datasets), 3, 512)
    assert parse(encode_matrix(written)) == written


def test_a_file_of_the_format_before() -> None:
    entry = ("blk.0.a.weight", 4, (1, 2, 3, 8))
    end = struct.pack("<ii", 2, 9) + b"texts.txt"
    assert parse(dat(entry, end=end)) == replace(matrix(), chunk_tokens=0)
    assert parse(dat(entry, end=struct.pack("<i", 2))).datasets == ()
    assert parse(dat(entry)).chunks == 0
    # without calls the sums are taken as they are
    assert weights(parse(dat(("a", 0, (6, 9)))).entries["a"]).tolist() == [6, 9]


def test_weights_are_means_and_alike_where_nothing_was_seen() -> None:
    assert weights(Entry(floats(1, 2, 3, 8), (4,))).tolist() == [0.25, 0.5, 0.75, 2]
    assert weights(Entry(floats(1, 2, 3, 8), (0,))).tolist() == [1, 1, 1, 1]
    assert weights(Entry(floats(1, 2, 3, 8), (0, 2))).tolist() == [1, 1, 1.5, 4]
    third = weights(Entry(floats(1), (3,)))
    assert third.dtype == np.float32
    assert third[0] == np.float32(1) / np.float32(3)


def test_numbers_of_tokens_are_rounded() -> None:
    data = encode_matrix(matrix()).replace(floats(4) + bytes(28), floats(3.5) + bytes(28))
    assert parse(data) == matrix()


def header(*changes: Value, tensors: tuple[Tensor, ...] = ()) -> bytes:
    """Return the front of a file, with other values (None: without), and zeros for data."""
    values = {
        "general.type": Value("general.type", "str", "imatrix"),
        "imatrix.datasets": Value("imatrix.datasets", "array[str]", []),
        "imatrix.chunk_count": Value("imatrix.chunk_count", "u32", 1),
        "imatrix.chunk_size": Value("imatrix.chunk_size", "u32", 1),
    } | {value.key: value for value in changes}
    known = [value for value in values.values() if value.value is not None]
    return encode_header(known, tensors) + bytes(32 * len(tensors))


GOOD = encode_matrix(matrix())
SUMS, COUNTS = (Tensor(f"a.{name}", None, (8,), "F32") for name in ("in_sum2", "counts"))
BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "it is not GGUF, and as the .dat format before: it ends early"),
    "text": (b"version https://git-lfs.github.com/spec/v1\n", "it is not GGUF"),
    "nothing-but-zeros": (bytes(64), "it is not GGUF, .*: it has no entries"),
    "version": (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "GGUF of version 1, not 3"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "GGUF of version 50331648"),
    "model": (header(Value("general.type", "str", "model")), "its general.type is 'model'"),
    "no-entries": (header(), "it has no entries"),
    "no-key": (header(Value("imatrix.chunk_size", "u32", None)), "lacks the key imatrix.chunk_s"),
    "chunks": (header(Value("imatrix.chunk_count", "i32", -1)), "imatrix.chunk_count is -1"),
    "no-counts": (header(tensors=(SUMS,)), "lacks the tensor a.counts"),
    "no-sums": (header(tensors=(COUNTS,)), "lacks the tensor a.in_sum2"),
    "twice": (header(tensors=(SUMS, SUMS)), "'a.in_sum2' occurs twice"),
    "half": (header(tensors=(SUMS, replace(COUNTS, kind="F16"))), "a.counts is not F32"),
    "odd": (header(tensors=(SUMS, replace(COUNTS, shape=(3,)))), "a: 8 sums of 3 counts"),
    "cut": (GOOD[:-1], "blk.0.a.weight.counts ends after the file: cut off"),
    "cut-front": (GOOD[:100], "it ends early: cut off"),
    "nan": (GOOD.replace(floats(8), floats(np.nan)), "blk.0.a.weight: nan is no sum of squares"),
    "infinite": (GOOD.replace(floats(8), floats(np.inf)), "inf is no sum"),
    "negative": (GOOD.replace(floats(8), floats(-8)), "-8.0 is no sum"),
    "negative-count": (GOOD.replace(floats(4), floats(-4)), "-4 is no number of tokens"),
    "nan-count": (GOOD.replace(floats(4), floats(np.nan)), "counts holds infinity or NaN"),
    "dat-cut": (dat(("a", 1, (1, 2)))[:-1], "it ends early"),
    "dat-negative": (dat(("a", -1, (1, 2))), "-1 is no number of tokens"),
    "dat-length": (struct.pack("<ii", 1, -5) + bytes(40), "it ends early"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_is_none(name: str) -> None:
    data, why = BAD[name]
    with pytest.raises(ValueError, match=why):
        parse(data)


@given(st.randoms(use_true_random=False), st.sampled_from([GOOD, dat(("a", 2, (1.0, 2.0)))]))
def test_damaged_bytes_are_read_or_refused(chance: random.Random, data: bytes) -> None:
    for _ in range(chance.randrange(1, 4)):
        data = cut_or_flip(data, chance) or b"\0"
    with contextlib.suppress(ValueError):
        for entry in parse(data).entries.values():
            assert np.isfinite(weights(entry)).all()


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for start in (b"", b"GGUF\3\0\0\0"):
        with contextlib.suppress(ValueError):
            parse(start + data)


def test_a_model_is_not_read_as_a_whole(tmp_path: Path) -> None:
    with (tmp_path / "model.gguf").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match="1,099,511,627,776 bytes are too many"):
        read_matrix(tmp_path / "model.gguf")


def test_a_matrix_suits_a_model_by_names_and_columns() -> None:
    tensors = [
        Tensor("blk.0.a.weight", "a", (9, 4), "Q4_0"),
        Tensor("output.weight", "b", (9, 3), "Q6_K"),
        Tensor("blk.0.norm.weight", "c", (4,), "F32"),
    ]
    assert misfit(matrix(), tensors) is None
    assert misfit(matrix("blk.0.a.weight", "blk.7.a.weight"), tensors) is None
    assert misfit(matrix("blk.1.a.weight"), tensors) == "has no entry for blk.0.a.weight"
    wrong = misfit(matrix("blk.0.a.weight", "output.weight"), tensors)
    assert wrong == "has 4 columns for output.weight, not 3"
