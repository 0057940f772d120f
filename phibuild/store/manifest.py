"""manifest.json: what a folder of the store holds, and whether it still does.

The cheap check compares sizes and modification times; a file whose time differs is hashed, since a
store that was copied or lies on another file system may have lost them. The full check hashes all.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from phibuild.errors import Problem, StoreError
from phibuild.schema import document_text
from phibuild.store.documents import ArtifactFacts, ArtifactManifest, Manifest, ManifestFile
from phibuild.system.files import file_sha256, size_and_time, sync, written_sha256

MANIFEST = "manifest.json"
M = TypeVar("M", bound=Manifest)


@dataclass(frozen=True)
class Sealed:
    """A complete folder of the store, or one linked from it."""

    folder: Path
    manifest: Manifest

    @property
    def size_bytes(self) -> int:
        return sum(file.size for file in self.manifest.files)

    @property
    def digest(self) -> str:
        return self.manifest.artifact_digest

    @property
    def what(self) -> str:
        """What it is, for people, as far as its manifest says so."""
        return ""


@dataclass(frozen=True)
class StoredArtifact(Sealed):
    """The folder of an artifact."""

    manifest: ArtifactManifest

    @property
    def what(self) -> str:
        """Model, backend and variant."""
        made = self.manifest
        return f"{made.model} {made.backend} {made.variant.name}"


def seal(folder: Path, key: str) -> Manifest:
    """Write manifest.json with every file of the folder. Files are synced, hashed and made
    read-only. Raises StoreError if there is anything else than files and folders: what a link
    points to is somebody else's, and not there for ever."""
    return _write(folder, _list(folder, key))


def seal_artifact(folder: Path, key: str, facts: ArtifactFacts) -> ArtifactManifest:
    """Write manifest.json of an artifact, as `seal` does."""
    return _write(folder, ArtifactManifest(**dict(_list(folder, key)), **dict(facts)))


def _list(folder: Path, key: str) -> Manifest:
    files = []
    for path in _files(folder):
        sync(path)
        path.chmod(0o444)
        status = path.stat()
        files.append(
            ManifestFile(
                path=path.relative_to(folder).as_posix(),
                size=status.st_size,
                sha256=written_sha256(path),
                mtime_ns=status.st_mtime_ns,
            )
        )
    return Manifest(key=key, artifact_digest=_digest(files), files=files)


def _files(folder: Path) -> list[Path]:
    """Return the files of a folder in order. Raises StoreError where `seal` does."""
    files, problems = [], []
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode):
            files.append(path)
        elif not stat.S_ISDIR(mode):
            kind = "a symbolic link" if stat.S_ISLNK(mode) else "no file"
            what = f"{path.relative_to(folder).as_posix()} is {kind}"
            remedy = "a result is files alone: a defect of what made it"
            problems.append(Problem(what, str(folder), remedy))
    if problems:
        raise StoreError(*problems)
    return files


def _write(folder: Path, manifest: M) -> M:
    path = folder / MANIFEST
    path.write_text(document_text(manifest, sort_keys=True) + "\n", encoding="utf-8")
    sync(path)
    path.chmod(0o444)
    return manifest


def _digest(files: Iterable[ManifestFile]) -> str:
    text = "".join(f"{file.path} {file.sha256}\n" for file in files)
    return hashlib.sha256(text.encode()).hexdigest()


def read_sealed(folder: Path) -> Sealed | None:
    """Return what the manifest of any folder of the store lists; None if there is none, or a
    damaged one."""
    try:
        return Sealed(folder, read_manifest(folder, Manifest))
    except (OSError, ValueError):
        return None


def read_artifact(folder: Path) -> StoredArtifact | None:
    """Return the artifact in a folder, in the store or linked from it; None if there is none."""
    try:
        return StoredArtifact(folder, read_manifest(folder, ArtifactManifest))
    except (OSError, ValueError):
        return None


def read_manifest(folder: Path, kind: type[M]) -> M:
    """Return the manifest of a folder. Raises OSError or ValueError if it has none of this kind."""
    try:
        data = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return kind.read(data)


def damage(artifact: Sealed) -> str | None:
    """Return what is wrong with an artifact by the cheap check, None if nothing is."""
    for file in artifact.manifest.files:
        path = artifact.folder / file.path
        found = size_and_time(path)
        if found == (file.size, file.mtime_ns):
            continue
        problem = _difference(path, file)
        if problem:
            return problem
        with contextlib.suppress(OSError):  # the next check is cheap again, where that is allowed
            os.utime(path, ns=(file.mtime_ns, file.mtime_ns), follow_symlinks=False)
    return None


def check_artifact(artifact: Sealed) -> list[str]:
    """Compare every file of an artifact with its manifest, in full; return what differs."""
    listed = {file.path: file for file in artifact.manifest.files}
    found = (_difference(artifact.folder / name, file) for name, file in listed.items())
    problems = [problem for problem in found if problem]
    for path in artifact.folder.rglob("*"):
        name = path.relative_to(artifact.folder).as_posix()
        there = path.is_file() or path.is_symlink()
        if there and name not in listed and name != MANIFEST:
            problems.append(f"{name}: not in the manifest")
    if artifact.digest != _digest(artifact.manifest.files):
        problems.append(f"{MANIFEST}: its artifact_digest is not that of its files")
    return sorted(problems)


def require_intact(artifact: Sealed) -> None:
    """Check in full what is about to leave the store's care: a copy, something published. Raises
    StoreError with all that differs."""
    problems = check_artifact(artifact)
    if problems:
        raise StoreError(*(Problem(problem, str(artifact.folder)) for problem in problems))


def _difference(path: Path, file: ManifestFile) -> str | None:
    """Return how a file differs from its entry in the manifest; it is read if need be."""
    found = size_and_time(path) if path.is_file() else None
    if found is None:
        return f"{file.path}: missing"
    if found[0] != file.size:
        return f"{file.path}: {found[0]} bytes, manifest {file.size}"
    try:
        same = file_sha256(path) == file.sha256
    except FileNotFoundError:  # another process has just set it aside
        return f"{file.path}: missing"
    if not same:
        return f"{file.path}: content differs from the manifest's sha256"
    return None
