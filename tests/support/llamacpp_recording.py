"""What is recorded of llama.cpp's own tools, and how a GGUF file is read for it.

The reader of GGUF is a third one, beside phibuild's writer and llama.cpp's library: straight from
ggml's docs/gguf.md.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phibuild.backends.llamacpp.layout import stored_name
from phibuild.backends.llamacpp.matrix import Entry, ImportanceMatrix
from phibuild.worker.safetensors import read_checkpoint
from support.checkpoints import tensor_values

ROOT = Path(__file__).resolve().parents[2]
RECORDING = ROOT / "tests" / "data" / "llamacpp_vendor.json"
HELDOUT = ROOT / "phibuild" / "data" / "phi3-tiny-trained" / "heldout.txt"
MODEL_NAME = "recorded"
TEXT_LINES = 400

ALL_TYPES = ("Q4_K_M", "Q4_0", "Q5_K_M", "IQ4_XS", "Q8_0", "F16", "F32")
SOME_TYPES = ("Q4_K_M", "Q8_0", "F16", "F32")
IMATRIX_TYPES = ("Q4_K_M", "Q4_0", "Q5_K_M", "IQ4_XS")
IMATRIX_TOKENS, IMATRIX_CHUNKS = 1000, 2  # the division by the number is to round
IMATRIX_FILE = "fixed.gguf"


@dataclass(frozen=True)
class Case:
    """One checkpoint that is recorded: the arguments of make_checkpoint, the file types, and those
    that are made with an importance matrix too."""

    shape: str
    dtype: str
    layers: int
    types: tuple[str, ...]
    imatrix_types: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.shape}-{self.dtype}"


# Nine layers: an eighth of them is one, so that every branch of the mixtures' rules is taken.
CASES = (
    Case("phi3", "bf16", 9, ALL_TYPES, IMATRIX_TYPES),
    Case("phi4mini", "bf16", 9, ALL_TYPES, IMATRIX_TYPES),
    Case("phi4", "bf16", 9, ALL_TYPES, IMATRIX_TYPES),
    Case("phi3", "fp16", 4, SOME_TYPES),
    Case("phi3", "fp32", 4, SOME_TYPES),
)

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?",
            10: "<Q", 11: "<q", 12: "<d"}  # fmt: skip
_STRING, _ARRAY = 8, 9
# ggml_type -> weights per block, bytes per block (ggml.h)
_BLOCKS = {0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34),
           12: (256, 144), 13: (256, 176), 14: (256, 210), 20: (32, 18), 23: (256, 136),
           30: (1, 2)}  # fmt: skip


def describe(path: Path) -> dict[str, Any]:
    """Return {"metadata": {key: value}, "tensors": {name: [type, shape, sha256]}} of a GGUF file.

    Strings and arrays of the metadata are their sha256. The shape is innermost first.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return _Reader(data).describe()


class _Reader:
    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._at = data, 0

    def describe(self) -> dict[str, Any]:
        magic, version, tensors, values = self._unpack("<4sIQQ")
        if magic != b"GGUF" or version != 3:
            raise ValueError(f"not a GGUF file of version 3: {magic!r} {version}")
        metadata = {}
        for _ in range(values):
            key = self._string().decode()
            metadata[key] = self._value(*self._unpack("<I"))
        infos = []
        for _ in range(tensors):
            name = self._string().decode()
            (dimensions,) = self._unpack("<I")
            shape = list(self._unpack(f"<{dimensions}Q"))
            infos.append((name, shape, *self._unpack("<IQ")))
        start = -(-self._at // 32) * 32
        described = {}
        for name, shape, kind, offset in sorted(infos):
            weights, nbytes = _BLOCKS[kind]
            size = math.prod(shape) // weights * nbytes
            raw = self._data[start + offset : start + offset + size]
            if len(raw) != size:
                raise ValueError(f"{name} ends after the file")
            described[name] = [kind, shape, hashlib.sha256(raw).hexdigest()]
        return {"metadata": dict(sorted(metadata.items())), "tensors": described}

    def _unpack(self, format: str) -> tuple[Any, ...]:
        found = struct.unpack_from(format, self._data, self._at)
        self._at += struct.calcsize(format)
        return found

    def _string(self) -> bytes:
        (length,) = self._unpack("<Q")
        self._at += length
        return self._data[self._at - length : self._at]

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return hashlib.sha256(self._string()).hexdigest()
        if kind != _ARRAY:
            return self._unpack(_SCALARS[kind])[0]
        item, count = self._unpack("<IQ")
        start = self._at
        for _ in range(count):
            self._value(item)
        digest = hashlib.sha256(self._data[start : self._at]).hexdigest()
        return [item, count, digest]


def squared_inputs(checkpoint: Path) -> dict[str, NDArray[np.float32]]:
    """Return fixed sums of squared inputs [columns] for every matrix inside a checkpoint's layers,
    of very different sizes, as activations are."""
    sums = {}
    for name, tensor in read_checkpoint(checkpoint).items():
        if name.startswith("model.layers.") and len(tensor.shape) == 2:
            normal = tensor_values(name, tensor.shape[-1:], seed=1)
            sums[name] = (normal**2 * np.float32(1e6) + np.float32(0.001)) ** 2
    return sums


def fixed_matrix(checkpoint: Path) -> ImportanceMatrix:
    """Return those sums as an importance matrix."""
    entries = {
        stored_name(name): Entry(sums.tobytes(), (IMATRIX_TOKENS,))
        for name, sums in squared_inputs(checkpoint).items()
    }
    chunk_tokens = IMATRIX_TOKENS // IMATRIX_CHUNKS
    return ImportanceMatrix(entries, ("fixed values",), IMATRIX_CHUNKS, chunk_tokens)


def text_lines() -> list[str]:
    """Return the lines whose token ids are recorded: evenly spaced over the held-out text."""
    lines = [line for line in HELDOUT.read_text(encoding="utf-8").splitlines() if line.strip()]
    return lines[:: max(1, len(lines) // TEXT_LINES)][:TEXT_LINES]


def digest(value: object) -> str:
    """Return the sha256 of a value's JSON."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def folder_digest(folder: Path) -> str:
    """Return the sha256 over names and contents of the files of a checkpoint that decide a GGUF."""
    suffixes = (".json", ".jinja", ".model", ".safetensors")
    files = sorted(path for path in folder.iterdir() if path.suffix in suffixes)
    return digest([[path.name, hashlib.sha256(path.read_bytes()).hexdigest()] for path in files])
