"""Safetensors without a framework: read headers, read rows, write at offsets known beforehand.

Format (huggingface/safetensors): 8 bytes little-endian header length, a JSON header that maps
names to dtype, shape and data_offsets, then the data. Standard library only, so that the core and
every toolchain can use it. Files are written with one metadata key at most: with more, other
writers order them at random and the bytes would not be reproducible.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from phibuild.worker.direct_io import OutputFile
from phibuild.worker.json_values import NoObjectError, parse_object

ITEM_BYTES = {
    "F64": 8,
    "I64": 8,
    "U64": 8,
    "F32": 4,
    "I32": 4,
    "U32": 4,
    "BF16": 2,
    "F16": 2,
    "I16": 2,
    "U16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
}
FLOAT_DTYPES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}
"""The float types of weights: config.json's name -> safetensors'."""
_MAX_HEADER = 100_000_000
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies: `offset` and `nbytes` are bytes from the start of the file `path`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    nbytes: int

    @property
    def parameters(self) -> int:
        return math.prod(self.shape)


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Return the tensors of one file, in the order of their data.

    Raises ValueError, saying what, if the file is not safetensors, is truncated, or is longer
    than its header says.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if len(start) < 8:
            raise ValueError(f"{size} bytes are too few for a safetensors file")
        length = struct.unpack("<Q", start)[0]
        if length > min(_MAX_HEADER, size - 8):
            raise ValueError("its header is longer than the file; truncated, or not safetensors")
        try:
            header = parse_object(file.read(length))
        except NoObjectError as error:
            raise ValueError("its header is not a JSON object") from error
        except (ValueError, RecursionError) as error:
            raise ValueError("its header is not JSON; damaged, or not safetensors") from error
    tensors = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            dtype, shape = str(entry["dtype"]), _counts(entry["shape"])
            first, last = _counts(entry["data_offsets"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"header entry of tensor {name!r} is malformed") from error
        if last < first:
            raise ValueError(f"header entry of tensor {name!r} is malformed")
        if dtype in ITEM_BYTES and last - first != math.prod(shape) * ITEM_BYTES[dtype]:
            raise ValueError(
                f"tensor {name!r}: {last - first} bytes do not hold {dtype} {list(shape)}"
            )
        tensors.append(TensorInfo(name, dtype, shape, path, 8 + length + first, last - first))
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.nbytes))
    end = 8 + length
    for tensor in tensors:
        if tensor.offset != end:
            raise ValueError(f"tensor {tensor.name!r} does not begin where the one before it ends")
        end += tensor.nbytes
    if end != size:
        raise ValueError(f"it has {size:,} bytes, its header promises {end:,}")
    return {tensor.name: tensor for tensor in tensors}


def _counts(values: object) -> tuple[int, ...]:
    """Return a JSON list of whole numbers, zero or more; raises ValueError for anything else."""
    match values:
        case list() if all(type(n) is int and n >= 0 for n in values):
            return tuple(values)
    raise ValueError(f"{values!r} is not a list of whole numbers")


def shard_paths(folder: Path) -> list[Path]:
    """Return the weight files of a folder as Transformers chooses them: model.safetensors, else
    those that the index names; [] if there is neither. Raises ValueError if the index names a file
    of another folder; KeyError, TypeError or AttributeError if it is no index."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    index = folder / INDEX
    if not index.exists():
        return []
    names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    elsewhere = [name for name in names if Path(name).name != name]
    if elsewhere:
        raise ValueError(f"it names {elsewhere[0]!r}, which is not a file beside it")
    return [folder / name for name in names]


def read_checkpoint(folder: Path) -> dict[str, TensorInfo]:
    """Return all tensors of a (sharded) checkpoint folder by name."""
    tensors: dict[str, TensorInfo] = {}
    for path in shard_paths(folder):
        tensors.update(read_header(path))
    return tensors


class SafetensorsWriter:
    """Write a (sharded) set of tensors whose names, types and shapes are known beforehand.

    `entries` are (name, dtype, shape) in file order. Data is written with `write`, in any order
    and from any thread. Files are `model.safetensors`, or `model-00001-of-0000N.safetensors`
    where they exceed `max_shard_bytes`; the index is written where `index` asks for it or
    there is more than one file. Raises OSError where there is no room for them, and leaves none.
    """

    def __init__(
        self,
        folder: Path,
        entries: Iterable[tuple[str, str, tuple[int, ...]]],
        *,
        metadata: Mapping[str, str],
        max_shard_bytes: int = 5 << 30,
        index: bool = False,
    ) -> None:
        self._files: list[OutputFile] = []
        self._place: dict[str, tuple[OutputFile, int, int]] = {}
        shards: list[list[tuple[str, str, tuple[int, ...], int]]] = [[]]
        filled = 0
        for name, dtype, shape in entries:
            nbytes = math.prod(shape) * ITEM_BYTES[dtype]
            if shards[-1] and filled + nbytes > max_shard_bytes:
                shards.append([])
                filled = 0
            shards[-1].append((name, dtype, shape, nbytes))
            filled += nbytes
        self.total_bytes = sum(entry[3] for shard in shards for entry in shard)
        weight_map: dict[str, str] = {}
        for number, shard in enumerate(shards, 1):
            single = len(shards) == 1
            file = (
                "model.safetensors"
                if single
                else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            )
            try:
                self._open_shard(folder / file, shard, metadata)
            except OSError:  # no room: none is taken from others
                for opened in self._files:
                    opened.discard()
                raise
            weight_map.update((name, file) for name, *_ in shard)
        if index or len(shards) > 1:
            text = json.dumps(
                {
                    "metadata": {"total_size": self.total_bytes},
                    "weight_map": dict(sorted(weight_map.items())),
                },
                indent=4,
            )
            (folder / INDEX).write_text(text, encoding="utf-8")

    def _open_shard(
        self,
        path: Path,
        shard: list[tuple[str, str, tuple[int, ...], int]],
        metadata: Mapping[str, str],
    ) -> None:
        header: dict[str, object] = {"__metadata__": dict(metadata)}
        offset = 0
        for name, dtype, shape, nbytes in shard:
            header[name] = {
                "dtype": dtype,
                "shape": list(shape),
                "data_offsets": [offset, offset + nbytes],
            }
            offset += nbytes
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        out = OutputFile(path, 8 + len(text) + offset)
        self._files.append(out)
        out.write(struct.pack("<Q", len(text)) + text, 0)
        position = 8 + len(text)
        for name, _, _, nbytes in shard:
            self._place[name] = (out, position, nbytes)
            position += nbytes

    def write(self, name: str, data: bytes | memoryview, offset: int = 0) -> None:
        """Write `data` at `offset` bytes into the tensor `name`. Raises OSError, also for a piece
        before it."""
        file, position, nbytes = self._place[name]
        size = memoryview(data).nbytes
        if offset + size > nbytes:
            raise ValueError(f"{name}: {offset + size} bytes written to a tensor of {nbytes}")
        file.write(data, position + offset)

    def finish(self) -> None:
        """Wait until all is written. Raises OSError for what could not be."""
        for file in self._files:
            file.finish()

    def close(self) -> None:
        while self._files:
            self._files.pop().close()

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            self.close()
