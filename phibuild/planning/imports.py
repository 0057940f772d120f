"""Which modules a program of some packages can import, from the import statements alone.

Imports in functions count as those at the top of a module do; importing a.b.c imports a and a.b
too. A name that is computed cannot be followed: whoever computes one may mean any module of its own
package, unless it is known what it means (`told`). Files other than modules are not seen.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from phibuild.planning import syntax
from phibuild.planning.syntax import ANY, Part, read_part
from phibuild.store.store import Store, content_key

_COMPILED = (".so", ".pyd")
_MOST = 4096
"""Parts that a store remembers: many times those of one phibuild."""


class Memory:
    """What was counted of modules before, by their content; parsing them takes ten times as long
    as all else. It is kept in a store, where that can be written, and in this process."""

    def __init__(self, store: Store) -> None:
        self._store, self._path = store, store.root / "digests" / "code.json"
        self._method = hashlib.sha256(Path(syntax.__file__).read_bytes()).hexdigest()
        self._parts = self._load()
        self._is_new = False

    def part(self, source: bytes, functions: tuple[str, ...]) -> Part:
        """Return `read_part(source, functions)`."""
        key = " ".join((hashlib.sha256(source).hexdigest(), *functions))
        if key not in self._parts:
            self._parts[key], self._is_new = read_part(source, functions), True
        return self._parts[key]

    def save(self) -> None:
        """Have the store remember what is new."""
        if not self._is_new:
            return
        latest = list(self._parts.items())[-_MOST:]
        parts = {key: [part.digest, part.imports, part.calls] for key, part in latest}
        with contextlib.suppress(OSError):  # it is read again where it cannot be remembered
            self._store.write(self._path, json.dumps({"method": self._method, "parts": parts}))
        self._is_new = False

    def _load(self) -> dict[str, Part]:
        try:
            data = json.loads(self._path.read_text(encoding="utf-8"))
            if data["method"] == self._method:
                return {
                    key: Part(digest, tuple(imports), tuple(calls))
                    for key, (digest, imports, calls) in data["parts"].items()
                }
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            pass  # not remembered, or not readable
        return {}


class Code:
    """The modules of `packages` (name -> folder). An entry is a module, "a.b", or what some of its
    functions use, "a.b:f,g". `bare` are packages that are imported by their folder alone: their own
    __init__ is not run. `told` are modules whose calls of import_module are not followed: whoever
    asks knows what they import."""

    def __init__(
        self,
        packages: Mapping[str, Path],
        memory: Memory,
        *,
        bare: Collection[str] = (),
        told: Collection[str] = (),
    ) -> None:
        self._memory, self._bare, self._told = memory, bare, told
        self._files = dict(one for name, folder in packages.items() for one in _files(name, folder))
        self._read: dict[str, Part] = {}

    def part(self, entry: str) -> Part:
        """Return what counts of an entry itself, without what it imports. Raises KeyError if there
        is no such module."""
        if entry not in self._read:
            module, _, functions = entry.partition(":")
            path = self._files[module]
            source = path.read_bytes()
            if path.suffix in _COMPILED:
                self._read[entry] = Part(hashlib.sha256(source).hexdigest())
            else:
                names = tuple(filter(None, functions.split(",")))
                self._read[entry] = self._memory.part(source, names)
        return self._read[entry]

    def reached(self, entries: Collection[str], besides: Collection[str] = ()) -> set[str]:
        """Return these entries and every module that they import, directly or not. What is imported
        by the modules `besides` alone is not among them, nor are these."""
        found, todo = set[str](), list(entries)
        while todo:
            entry = todo.pop()
            if entry not in found and entry not in besides:
                found.add(entry)
                module = entry.partition(":")[0]
                todo += self._packages_above(module)
                part = self.part(entry)
                calls = () if module in self._told else part.calls
                for imported in (*part.imports, *calls):
                    todo += self._imported(module, imported)
        return found

    def digest(self, entries: Collection[str], besides: Collection[str] = ()) -> str:
        """Return the digest of all that is reached, by name and content."""
        parts = {one: self.part(one).digest for one in self.reached(entries, besides)}
        self._memory.save()
        return content_key(parts)

    def everything(self) -> str:
        """Return the digest of all modules."""
        return self.digest(list(self._files))

    def _packages_above(self, module: str) -> Iterator[str]:
        while module := module.rpartition(".")[0]:
            if module in self._files and module not in self._bare:
                yield module

    def _imported(self, importer: str, imported: str) -> Iterator[str]:
        name = self._absolute(importer, imported)
        if imported == ANY:
            yield from self._below(importer.partition(".")[0])
        elif name.endswith(f".{ANY}"):
            yield from self._below(name.removesuffix(f".{ANY}"))
        elif name in self._files and name not in self._bare:
            yield name

    def _absolute(self, importer: str, imported: str) -> str:
        name = imported.lstrip(".")
        level = len(imported) - len(name)
        if not level:
            return name
        words = importer.split(".")
        is_package = self._files[importer].stem == "__init__"
        base = words[: len(words) - level + is_package]
        return ".".join([*base, *filter(None, [name])])

    def _below(self, package: str) -> list[str]:
        return [name for name in self._files if name.startswith(f"{package}.")]


def _files(package: str, folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the modules of a package by name, and their files; of several of one name the one that
    Python would take comes last."""
    compiled, folders = [], []
    for path in folder.iterdir():
        if path.suffix == ".py":
            yield package if path.stem == "__init__" else f"{package}.{path.stem}", path
        elif path.suffix in _COMPILED:
            compiled.append((f"{package}.{path.name.partition('.')[0]}", path))
        elif path.name.isidentifier() and path.name != "__pycache__" and path.is_dir():
            folders.append(path)
    yield from compiled
    for path in folders:
        yield from _files(f"{package}.{path.name}", path)
