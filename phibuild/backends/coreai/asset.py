"""A Core AI asset on disk: the program's bytecode with room for weights, and where each lies.

Core AI's own library writes the bytecode. Instead of weights it is given pages of zeros that are
never touched, each of which begins with a mark; the marks say where in the file the weights go.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import coreai.authoring  # noqa: F401  # its modules import one another in this order alone
import numpy as np
from coreai._compiler.ir import DenseResourceElementsAttr, Location, Module
from coreai.authoring import AIProgram
from coreai.authoring.context import Context
from numpy.typing import NDArray

from phibuild.backends.coreai.mlir import NAMELESS
from phibuild.worker.protocol import WorkerError

PROGRAM, HASH, METADATA = "main.mlirb", "main.hash", "metadata.json"
"""Files of an .aimodel folder."""
_ALIGNMENT = 64
_RESOURCE = "dense_resource<"
_BITS = {"f32": 32, "f16": 16, "si8": 8, "si4": 4}


@dataclass(frozen=True)
class Place:
    """Bytes of a resource in the program's file."""

    offset: int
    nbytes: int


def write_program(
    text: str, small: Mapping[str, NDArray[np.generic]], path: Path
) -> dict[str, Place]:
    """Write a module's bytecode; return where its resources lie, but for those of `small`, which
    are written with it."""
    # Attributes point into these arrays for as long as the context lives.
    kept: dict[str, NDArray[np.generic]] = {}
    context = Context()._mlir_context
    with context, Location.unknown():
        module = Module.parse(text)
        for operation in constants(module):
            name = resource(operation)
            if name is None:
                continue
            name = name.removeprefix(NAMELESS)
            kind = operation.results[0].type
            kept[name] = small[name] if name in small else _marked(name, _nbytes(str(kind)))
            operation.attributes["value"] = DenseResourceElementsAttr.get_from_buffer(
                np.ascontiguousarray(kept[name]), name, kind, alignment=_ALIGNMENT
            )
        module.operation.verify()
        AIProgram._from_mlir_module(module)._save_bytecode(path)
    sizes = {name: array.nbytes for name, array in kept.items() if name not in small}
    return _found(path, sizes)


def resource(operation: Any) -> str | None:
    """Return the name of what a constant is kept under, or None if it is written out."""
    value = str(operation.attributes["value"])[:256]
    if not value.startswith(_RESOURCE):
        return None
    return value[len(_RESOURCE) :].partition(">")[0].strip('"')


def constants(module: Any) -> Iterator[Any]:
    """Yield the constants of all graphs of a module."""
    for graph in module.body.operations:
        for block in graph.regions[0].blocks:
            for operation in block.operations:
                if operation.operation.name == "coreai.constant":
                    yield operation


def _mark(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def _marked(name: str, nbytes: int) -> NDArray[np.uint8]:
    """Return zeros, but for the mark."""
    data = np.zeros(nbytes, np.uint8)
    mark = np.frombuffer(_mark(name), np.uint8)[:nbytes]
    data[: len(mark)] = mark
    return data


def _nbytes(kind: str) -> int:
    """Return the bytes of a tensor type such as tensor<8x4xf16>."""
    *sizes, number = kind.removeprefix("tensor<").removesuffix(">").split("x")
    bits = _BITS[number]
    for size in sizes:
        bits *= int(size)
    return bits // 8


def _found(path: Path, sizes: Mapping[str, int]) -> dict[str, Place]:
    """Find the marks, which lie in the order in which the resources are first used."""
    places = {}
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
        end = 0
        for name, nbytes in sizes.items():
            offset = data.find(_mark(name)[:nbytes], end)
            if offset < 0:
                raise WorkerError(f"Core AI's library has {name} out of its order in the program")
            end = offset + nbytes
            places[name] = Place(offset, nbytes)
    return places


def write_hash(folder: Path) -> None:
    """Write the digest of the program, once it is whole."""
    with (folder / PROGRAM).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
    (folder / HASH).write_bytes(digest)
