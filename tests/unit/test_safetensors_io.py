"""The safetensors reader and writer: round trips, shards, and files that are not what they say."""

from __future__ import annotations

import json
import math
import struct
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phibuild.worker.safetensors import (
    INDEX,
    ITEM_BYTES,
    SafetensorsWriter,
    read_checkpoint,
    read_header,
    shard_paths,
)

Entry = tuple[str, str, tuple[int, ...]]


def size_of(entry: Entry) -> int:
    return math.prod(entry[2]) * ITEM_BYTES[entry[1]]


def content(entry: Entry) -> bytes:
    """Bytes that differ from tensor to tensor and from place to place."""
    return bytes((sum(entry[0].encode()) + 7 * n) % 251 for n in range(size_of(entry)))


entries_of = st.lists(
    st.tuples(
        st.text(min_size=1, max_size=12).filter(lambda name: name != "__metadata__"),
        st.sampled_from(sorted(ITEM_BYTES)),
        st.lists(st.integers(0, 6), max_size=3).map(tuple),
    ),
    max_size=8,
    unique_by=lambda entry: entry[0],
)


def write(folder: Path, entries: list[Entry], **options: Any) -> None:
    with SafetensorsWriter(folder, entries, metadata={"format": "pt"}, **options) as writer:
        for entry in reversed(entries):  # in any order, in pieces
            data = content(entry)
            half = len(data) // 2
            writer.write(entry[0], memoryview(data)[half:], offset=half)
            writer.write(entry[0], data[:half])


@settings(deadline=None)
@given(entries_of, st.integers(1, 600), st.booleans())
def test_what_is_written_is_read_back(entries: list[Entry], limit: int, index: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, entries, max_shard_bytes=limit, index=index)
        found = read_checkpoint(folder)
        assert {name: (t.dtype, t.shape) for name, t in found.items()} == {
            name: (dtype, shape) for name, dtype, shape in entries
        }
        for entry in entries:
            tensor = found[entry[0]]
            data = tensor.path.read_bytes()[tensor.offset : tensor.offset + tensor.nbytes]
            assert data == content(entry)
        paths = shard_paths(folder)
        assert len(paths) == 1 or (folder / INDEX).exists()
        if entries:
            assert set(paths) == set(folder.glob("*.safetensors"))
        for path in paths:
            stored = [tensor.nbytes for tensor in read_header(path).values()]
            filled = [size for size in stored if size]
            assert sum(stored) <= limit or len(filled) == 1


def test_shards_break_exactly_at_the_limit(tmp_path: Path) -> None:
    entries: list[Entry] = [(f"t{n}", "F32", (25,)) for n in range(4)]
    for limit, shards in ((400, 1), (399, 2), (300, 2), (200, 2), (199, 4), (1, 4)):
        folder = tmp_path / str(limit)
        folder.mkdir()
        write(folder, entries, max_shard_bytes=limit)
        names = [path.name for path in shard_paths(folder)]
        assert len(names) == shards
        if shards > 1:
            assert names[0] == f"model-00001-of-{shards:05d}.safetensors"
            data = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            assert data["metadata"]["total_size"] == 400
            assert sorted(data["weight_map"]) == ["t0", "t1", "t2", "t3"]
        else:
            assert names == ["model.safetensors"]
            assert not (folder / INDEX).exists()


def test_the_same_content_is_the_same_bytes(tmp_path: Path) -> None:
    entries: list[Entry] = [("b", "BF16", (3, 4)), ("a", "U8", (5,))]
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, entries)
    one, two = (tmp_path / name / "model.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    assert list(read_header(one)) == ["b", "a"]  # in the order of the data


def test_a_tensor_cannot_be_written_past_its_end(tmp_path: Path) -> None:
    with (
        SafetensorsWriter(tmp_path, [("a", "F32", (2,)), ("b", "F32", (2,))], metadata={}) as out,
        pytest.raises(ValueError, match="9 bytes written to a tensor of 8"),
    ):
        out.write("a", b"12345", offset=4)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write(tmp_path, [("x", "F32", (3,)), ("y", "BF16", (2, 2))])
    return tmp_path / "model.safetensors"


def test_every_truncation_is_refused(file: Path) -> None:
    data = file.read_bytes()
    for length in range(len(data)):
        file.write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"."):
            read_header(file)


def test_surplus_bytes_are_refused(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(ValueError, match="its header promises"):
        read_header(file)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_no_safetensors(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "model.safetensors"
        path.write_bytes(data)
        try:
            tensors = read_header(path)
        except ValueError:
            return
        assert sum(tensor.nbytes for tensor in tensors.values()) <= len(data)


def make(path: Path, header: object, data: bytes) -> Path:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(first: Any, last: Any, shape: Any = (2,), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ("{", b"", "not JSON"),
        ("\x00\x01", b"", "not JSON"),
        ("[" * 100_000, b"", "not JSON"),
        ([1], b"", "not a JSON object"),
        ({"x": 5}, b"", "'x' is malformed"),
        ({"x": {"dtype": "F32"}}, b"", "'x' is malformed"),
        ({"x": entry(0, 8, shape=[-2])}, b"8" * 8, "'x' is malformed"),
        ({"x": entry(0, 8, shape="2")}, b"8" * 8, "'x' is malformed"),
        ({"x": entry(0, 8, shape=[2.0])}, b"8" * 8, "'x' is malformed"),
        ({"x": entry(0, 8, shape=[True, 2])}, b"8" * 8, "'x' is malformed"),
        ({"x": entry(8, 0)}, b"8" * 8, "'x' is malformed"),
        ({"x": entry(-8, 0)}, b"", "'x' is malformed"),
        ({"x": entry(0, 1e400)}, b"8" * 8, "'x' is malformed"),
        ({"x": {**entry(0, 8), "data_offsets": [0]}}, b"8" * 8, "'x' is malformed"),
        ({"x": entry(0, 4)}, b"4" * 4, "4 bytes do not hold F32"),
        ({"x": entry(0, 8), "y": entry(4, 12)}, b"8" * 12, "'y' does not begin where"),
        ({"x": entry(0, 8), "y": entry(0, 8)}, b"8" * 8, "does not begin where"),
        ({"x": entry(4, 12)}, b"8" * 12, "'x' does not begin where"),
        ({"x": entry(0, 8)}, b"8" * 7, "its header promises"),
    ],
)
def test_damaged_headers_are_refused(
    tmp_path: Path, header: object, data: bytes, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        read_header(make(tmp_path / "model.safetensors", header, data))


def test_a_header_longer_than_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 2**63) + b"{}")
    with pytest.raises(ValueError, match="longer than the file"):
        read_header(path)
