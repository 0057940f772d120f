"""What is in the store: entries with their sizes and uses, bytes by kind."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from phibuild.store.manifest import MANIFEST
from phibuild.store.store import ARTIFACTS, MEASURES, REFERENCES, Store, read_entry
from phibuild.store.uses import Use, read_uses
from phibuild.system.locks import is_held


@dataclass(frozen=True)
class Entry:
    """One entry. `freed_bytes` is what removing it gives back: files that runs link to stay.
    `used` is when it was made or a run last named it, in seconds since 1970; `runs` are the
    folders of the runs that name it; `state` is "complete", "damaged" or "in use"."""

    kind: str
    key: str
    path: Path
    what: str
    size_bytes: int
    freed_bytes: int
    used: float
    runs: tuple[Path, ...]
    state: str


def entries(store: Store) -> list[Entry]:
    """Return the artifacts, references and measures of the store, least recently used first."""
    uses = sorted((use for use in read_uses(store) if not use.gone), key=lambda use: use.time)
    found = []
    for kind in (ARTIFACTS, REFERENCES, MEASURES):
        named: dict[str, list[Use]] = {}
        for use in uses:
            for key in use.keys[kind]:
                named.setdefault(key, []).append(use)
        for path in _children(store.root / kind):
            found.append(_entry(store, kind, path, named.get(path.name.split(".")[0], [])))
    return sorted(found, key=lambda entry: (entry.used, entry.key))


def _entry(store: Store, kind: str, path: Path, uses: Iterable[Use]) -> Entry:
    key = path.name.split(".")[0]
    files = _files(path)
    sealed = read_entry(kind, path) if path.is_dir() else None
    state = "complete"
    if any(use.alive for use in uses) or is_held(store.root / "locks" / f"{key}.lock"):
        state = "in use"
    elif kind != MEASURES and not (
        sealed and all(files.get(path / f.path) == f.size for f in sealed.manifest.files)
    ):
        state = "damaged"
    made = _time(path / MANIFEST if path.is_dir() else path)
    return Entry(
        kind=kind,
        key=key,
        path=path,
        what=sealed.what if sealed else "",
        size_bytes=sum(files.values()),
        freed_bytes=_freed(files),
        used=max([made, *(use.time for use in uses)]),
        runs=tuple(use.folder for use in uses),
        state=state,
    )


def usage(store: Store) -> dict[str, tuple[int, int]]:
    """Return (bytes, bytes that removing it would free) of each folder of the store."""
    sizes = {}
    for path in _children(store.root):
        files = _files(path)
        sizes[path.name] = (sum(files.values()), _freed(files))
    return sizes


def _children(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _files(path: Path) -> dict[Path, int]:
    """Return the size of every file of a folder, or of the file itself; what vanishes meanwhile is
    left out."""
    sizes = {}
    for file in [path] if path.is_file() else path.rglob("*"):
        try:
            if file.is_file() and not file.is_symlink():
                sizes[file] = file.stat().st_size
        except OSError:
            continue
    return sizes


def _freed(files: dict[Path, int]) -> int:
    freed = 0
    for path, size in files.items():
        try:
            freed += size if path.stat().st_nlink == 1 else 0
        except OSError:
            continue
    return freed


def _time(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
