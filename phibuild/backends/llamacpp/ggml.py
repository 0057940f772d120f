"""libggml through ctypes: quantize rows, widen rows, check rows, read GGUF files.

The library is the shared object inside the `xllamacpp` package, which exports the C functions of
ggml and llama.cpp on Linux and macOS. Signatures: ggml.h, gguf.h. ctypes releases the interpreter's
lock during a call, so threads run these side by side.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from phibuild.backends.llamacpp.layout import BLOCK_TYPES
from phibuild.worker.protocol import WorkerError

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
_MAX_DIMENSIONS = 4  # GGML_MAX_DIMS
_UINT32, _STRING, _ARRAY = 4, 8, 9  # gguf_type: the library aborts if asked for another than it has


@functools.cache
def library() -> ctypes.CDLL:
    """Return the engine, loaded once. Raises WorkerError where the package exports no functions
    (Windows), is missing, or stores a type another way than phibuild counts."""
    if sys.platform == "win32":
        raise WorkerError(
            "the llamacpp backend does not work on Windows: xllamacpp's module exports none of "
            "llama.cpp's functions there; use WSL"
        )
    spec = importlib.util.find_spec("xllamacpp")
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
    objects = sorted(path for folder in folders for path in folder.glob("xllamacpp*.so"))
    if not objects:
        raise WorkerError("the package xllamacpp, which holds llama.cpp, is not installed")
    # llama.cpp's threads wait for each other by spinning: where other steps share the cores, one
    # token takes as long as a time slice. Not to spin at all costs small models most of their
    # speed (a wake-up for every operation). So: a short spin, then sleep. Read by libgomp when it
    # is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    # A failed assertion of llama.cpp's has a debugger attach to this process and print a backtrace;
    # where the two wait for each other the process hangs, and does not end.
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")
    try:
        engine = ctypes.CDLL(str(objects[0]))
    except OSError as error:
        raise WorkerError(
            f"llama.cpp cannot be loaded: {error}. If it is libgomp.so.1 that is missing, install "
            "GNU OpenMP (libgomp1 on Debian and Ubuntu, libgomp on Fedora)"
        ) from error
    _declare(engine)
    for kind, block in BLOCK_TYPES.items():
        stored = engine.ggml_blck_size(block.id), engine.ggml_type_size(block.id)
        if stored != (block.weights, block.nbytes):
            raise WorkerError(f"{objects[0].name} stores {kind} in another way: {stored}")
    return engine


def _declare(engine: ctypes.CDLL) -> None:
    pointer, integer, size, big = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t, ctypes.c_int64
    text = ctypes.c_char_p
    for name, result, arguments in (
        ("ggml_blck_size", big, [integer]),
        ("ggml_type_size", size, [integer]),
        ("ggml_type_name", text, [integer]),
        ("ggml_bf16_to_fp32_row", None, [pointer, pointer, big]),
        ("ggml_fp16_to_fp32_row", None, [pointer, pointer, big]),
        ("ggml_cpu_fp32_to_fp16", None, [pointer, pointer, big]),
        ("ggml_quantize_chunk", size, [integer, pointer, pointer, big, big, big, pointer]),
        ("ggml_validate_row_data", ctypes.c_bool, [integer, pointer, size]),
        ("gguf_init_from_file", pointer, [text, _GgufInit]),
        ("gguf_free", None, [pointer]),
        ("gguf_find_key", big, [pointer, text]),
        ("gguf_get_n_kv", big, [pointer]),
        ("gguf_get_key", text, [pointer, big]),
        ("gguf_get_kv_type", integer, [pointer, big]),
        ("gguf_get_arr_type", integer, [pointer, big]),
        ("gguf_get_arr_n", size, [pointer, big]),
        ("gguf_get_arr_str", text, [pointer, big, size]),
        ("gguf_get_val_str", text, [pointer, big]),
        ("gguf_get_val_u32", ctypes.c_uint32, [pointer, big]),
        ("gguf_get_data_offset", size, [pointer]),
        ("gguf_get_n_tensors", big, [pointer]),
        ("gguf_get_tensor_name", text, [pointer, big]),
        ("gguf_get_tensor_type", integer, [pointer, big]),
        ("gguf_get_tensor_offset", size, [pointer, big]),
        ("gguf_get_tensor_size", size, [pointer, big]),
        ("gguf_get_tensor_ne", ctypes.POINTER(ctypes.c_int64), [pointer, big]),
    ):
        function = getattr(engine, name)
        function.restype, function.argtypes = result, arguments


class _GgufInit(ctypes.Structure):
    """`gguf_init_params`."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


def widen(raw: Bytes, dtype: str, out: Floats) -> None:
    """Write the weights in `raw`, of safetensors type BF16, F16 or F32, to `out` as float32."""
    if dtype == "F32":
        out[:] = raw.view(np.float32)
        return
    widener = {"BF16": "ggml_bf16_to_fp32_row", "F16": "ggml_fp16_to_fp32_row"}[dtype]
    getattr(library(), widener)(raw.ctypes.data, out.ctypes.data, out.size)


def quantize(
    kind: str, rows: Floats, columns: int, out: Bytes, importance: Floats | None = None
) -> int:
    """Write `rows` (float32, whole rows of `columns`) to `out` in type `kind`; return the bytes.

    `importance` [columns] weighs the squared errors of the rounding; types that have no use for it
    ignore it.
    """
    if kind == "F16":
        # The same values as ggml_quantize_chunk's, which converts one by one: 20 times as fast.
        library().ggml_cpu_fp32_to_fp16(rows.ctypes.data, out.ctypes.data, rows.size)
        return 2 * rows.size
    return int(
        library().ggml_quantize_chunk(
            BLOCK_TYPES[kind].id,
            rows.ctypes.data,
            out.ctypes.data,
            0,
            rows.size // columns,
            columns,
            None if importance is None else importance.ctypes.data,
        )
    )


def is_valid(kind: str, data: Bytes) -> bool:
    """Return whether rows of type `kind` hold neither infinity nor NaN, as llama.cpp checks it."""
    return bool(
        library().ggml_validate_row_data(BLOCK_TYPES[kind].id, data.ctypes.data, data.nbytes)
    )


@dataclass(frozen=True)
class GgufTensor:
    """A tensor as a finished file has it: type name as in layout.BLOCK_TYPES, weights, bytes."""

    name: str
    kind: str
    parameters: int
    nbytes: int


def read_tensors(path: Path) -> list[GgufTensor]:
    """Return the tensors of a GGUF file, read by llama.cpp's own reader.

    Raises WorkerError if it is not a GGUF file, or shorter than its header promises.
    """
    with _Gguf(path) as file:
        return list(file.tensors())


def find_number(path: Path, key: str) -> int | None:
    """Return the value of an unsigned 32-bit key of a GGUF file, None if it has none."""
    with _Gguf(path) as file:
        return file.number(key)


def read_texts(path: Path, prefix: str) -> dict[str, str]:
    """Return the text values of a GGUF file's keys that begin with `prefix`, by key."""
    with _Gguf(path) as file:
        return file.texts(prefix)


def read_named(path: Path, keys: Sequence[str], array: str) -> list[str | None]:
    """Return, for keys that hold a number, the entry with this number of the text array `array`;
    None where there is no such key or entry."""
    with _Gguf(path) as file:
        return [file.named(key, array) for key in keys]


class _Gguf:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._engine = library()
        self._handle = self._engine.gguf_init_from_file(str(path).encode(), _GgufInit(True, None))
        if not self._handle:
            raise WorkerError(f"{path.name} is not a GGUF file that llama.cpp can read")

    def __enter__(self) -> _Gguf:
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.gguf_free(self._handle)

    def number(self, key: str) -> int | None:
        found = self._find(key, _UINT32)
        return None if found is None else int(self._engine.gguf_get_val_u32(self._handle, found))

    def _find(self, key: str, kind: int) -> int | None:
        found = int(self._engine.gguf_find_key(self._handle, key.encode()))
        if found < 0 or self._engine.gguf_get_kv_type(self._handle, found) != kind:
            return None
        return found

    def texts(self, prefix: str) -> dict[str, str]:
        engine, handle = self._engine, self._handle
        keys = [
            engine.gguf_get_key(handle, n).decode() for n in range(engine.gguf_get_n_kv(handle))
        ]
        found = {key: self._find(key, _STRING) for key in keys if key.startswith(prefix)}
        return {
            key: engine.gguf_get_val_str(handle, place).decode("utf-8", "replace")
            for key, place in found.items()
            if place is not None
        }

    def named(self, key: str, array: str) -> str | None:
        engine, handle = self._engine, self._handle
        place, texts = self._find(key, _UINT32), self._find(array, _ARRAY)
        if place is None or texts is None or engine.gguf_get_arr_type(handle, texts) != _STRING:
            return None
        number = engine.gguf_get_val_u32(handle, place)
        if number >= engine.gguf_get_arr_n(handle, texts):
            return None
        return str(engine.gguf_get_arr_str(handle, texts, number).decode("utf-8", "replace"))

    def tensors(self) -> Iterator[GgufTensor]:
        engine, handle = self._engine, self._handle
        start, size = engine.gguf_get_data_offset(handle), self._path.stat().st_size
        for index in range(engine.gguf_get_n_tensors(handle)):
            name = engine.gguf_get_tensor_name(handle, index).decode()
            nbytes = engine.gguf_get_tensor_size(handle, index)
            if start + engine.gguf_get_tensor_offset(handle, index) + nbytes > size:
                raise WorkerError(f"{self._path.name} is truncated: {name} ends after the file")
            dimensions = engine.gguf_get_tensor_ne(handle, index)
            parameters = 1
            for axis in range(_MAX_DIMENSIONS):
                parameters *= dimensions[axis]
            kind = engine.ggml_type_name(engine.gguf_get_tensor_type(handle, index)).decode()
            yield GgufTensor(name, kind.upper(), parameters, nbytes)
