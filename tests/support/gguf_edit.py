"""Write a GGUF file anew by llama.cpp's own writer, with other keys: for the llamacpp toolchain.

`python gguf_edit.py FROM TO CHANGES`, where CHANGES is JSON: {key: text, number or null to remove}.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import sys
import types
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[2] / "phibuild"


class Init(ctypes.Structure):
    """`gguf_init_params`; without no_alloc the tensors are read into a ggml context."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.POINTER(ctypes.c_void_p)))


def main() -> None:
    package = types.ModuleType("phibuild")
    package.__path__ = [str(PACKAGE)]
    sys.modules["phibuild"] = package
    library: Any = importlib.import_module("phibuild.backends.llamacpp.ggml").library
    read, write, changes = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    engine = ctypes.CDLL(library()._name)  # with declarations of its own
    pointer, text = ctypes.c_void_p, ctypes.c_char_p
    for name, result, arguments in (
        ("gguf_init_from_file", pointer, [text, Init]),
        ("gguf_init_empty", pointer, []),
        ("gguf_set_kv", None, [pointer, pointer]),
        ("ggml_get_first_tensor", pointer, [pointer]),
        ("ggml_get_next_tensor", pointer, [pointer, pointer]),
        ("gguf_add_tensor", None, [pointer, pointer]),
        ("gguf_set_val_str", None, [pointer, text, text]),
        ("gguf_set_val_u32", None, [pointer, text, ctypes.c_uint32]),
        ("gguf_remove_key", ctypes.c_int64, [pointer, text]),
        ("gguf_write_to_file", ctypes.c_bool, [pointer, text, ctypes.c_bool]),
    ):
        function = getattr(engine, name)
        function.restype, function.argtypes = result, arguments
    tensors = pointer()
    source = engine.gguf_init_from_file(read.encode(), Init(False, ctypes.pointer(tensors)))
    assert source
    file = engine.gguf_init_empty()
    engine.gguf_set_kv(file, source)
    blob = engine.ggml_get_first_tensor(tensors)  # the data of all the others
    tensor = engine.ggml_get_next_tensor(tensors, blob)
    while tensor:
        engine.gguf_add_tensor(file, tensor)
        tensor = engine.ggml_get_next_tensor(tensors, tensor)
    for key, value in changes.items():
        if value is None:
            assert engine.gguf_remove_key(file, key.encode()) >= 0, key
        elif isinstance(value, str):
            engine.gguf_set_val_str(file, key.encode(), value.encode())
        else:
            engine.gguf_set_val_u32(file, key.encode(), value)
    assert engine.gguf_write_to_file(file, write.encode(), False)


if __name__ == "__main__":
    main()
