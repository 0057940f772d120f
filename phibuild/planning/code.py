"""The code of a step: what its runner imports, and the toolchain that it runs in.

`worker/entry.py` chooses by name what it imports: the backend's worker, and what judges. So the
entry points of every kind of step are named here; all else is found by following imports. A
worker's module counts as far as the functions that are called for a step use it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from phibuild.planning.imports import Code, Memory
from phibuild.planning.steps import REFERENCE_BACKEND
from phibuild.store.store import Store, content_key
from phibuild.system.plugins import plugin
from phibuild.toolchains.environment import toolchain

PACKAGE = Path(__file__).resolve().parents[1]
ENTRY = "phibuild.worker.entry"
_WITNESS = ("phibuild.backends.pytorch.witness", "phibuild.backends.pytorch.cut")
"""What holds Transformers' reading of a source against phibuild's, and makes nothing."""
_CALLED = {
    "build": "build",
    "measure": "prepare,load",
    "source": "source",
    "reference": "reference",
    "activations": "activations",
    "quantize": "quantize",
    "sensitivity": "sensitivity",
}
"""Kind of a step -> the functions of a worker's module that are called for it."""
KINDS = tuple(_CALLED)


def package_of(backend: str) -> str:
    """Return the package that a backend is."""
    return plugin(backend).package


def entries(kind: str, backend: str) -> tuple[str, ...]:
    """Return the entry points of a kind of step, for `Code.reached`."""
    judge = ("phibuild.worker.judge",) if kind == "measure" else ()
    return (ENTRY, *judge, f"{package_of(backend)}.worker:{_CALLED[kind]}")


def runner_code(store: Store, packages: Mapping[str, Path]) -> Code:
    """Return the modules that runners have of `packages` (name -> folder): phibuild and, where a
    backend is none of phibuild's own, the backend. Each is mounted by its folder alone."""
    return Code(packages, _memory(store.root), bare=tuple(packages), told=(ENTRY,))


def step_digest(kind: str, backend: str, store: Store) -> str:
    """Return the digest of what runs for a step of this kind ("build", "measure", "source",
    "reference", "activations", "quantize", "sensitivity"): the modules that it reaches, and the
    backend's locked toolchain. `store` remembers what was counted of each module."""
    return _digest(store.root, backend, entries(kind, backend))


def facts_digest(store: Store) -> str:
    """Return the digest of what makes those results of a source step that artifacts are made from:
    the tokenizer as Transformers has it, and weights that are merged or fused."""
    source = entries("source", REFERENCE_BACKEND)
    return _digest(store.root, REFERENCE_BACKEND, source, besides=_WITNESS)


def own_digest(entry: str, store: Store) -> str:
    """Return the digest of the statements of one of phibuild's own entries, whatever it imports."""
    return _code(store.root).part(entry).digest


def program_digest(backend: str, store: Store) -> str:
    """Return the digest of all of phibuild's code and a backend's locked toolchain."""
    return _with_toolchain(backend, _code(store.root, *_mounted(backend)).everything())


@cache
def _digest(
    root: Path, backend: str, reached: tuple[str, ...], besides: tuple[str, ...] = ()
) -> str:
    return _with_toolchain(backend, _code(root, *_mounted(backend)).digest(reached, besides))


def _mounted(backend: str) -> tuple[tuple[str, Path], ...]:
    """Return the packages that a backend's runner has besides phibuild, and their folders."""
    found = plugin(backend)
    return () if found.is_own else ((found.package, found.folder),)


@cache
def _memory(root: Path) -> Memory:
    return Memory(Store(root))


@cache
def _code(root: Path, *others: tuple[str, Path]) -> Code:
    return runner_code(Store(root), {"phibuild": PACKAGE, **dict(others)})


def _with_toolchain(backend: str, code: str) -> str:
    return content_key({"code": code, "toolchain": toolchain(backend).digest})
