"""manifest.json: what a folder of the store holds, and whether it still does.

The cheap check compares sizes and modification times; a file whose time differs is hashed, since a
store that was copied or lies on another file system may have lost them. The full check hashes all.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phibuild.errors import Problem, StoreError
from phibuild.system.files import file_sha256, size_and_time, sync, written_sha256

MANIFEST = "manifest.json"
_FILE_FIELDS = {"path": str, "size": int, "sha256": str, "mtime_ns": int}


@dataclass(frozen=True)
class Artifact:
    """A complete folder of the store, or one linked from it: an artifact, or what the original
    left (its logits, its activations)."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def size_bytes(self) -> int:
        return sum(int(file["size"]) for file in self.manifest["files"])

    @property
    def digest(self) -> str:
        return str(self.manifest["artifact_digest"])


def seal(folder: Path, data: Mapping[str, Any]) -> dict[str, Any]:
    """Write manifest.json with `data` and every file of the folder. Files are synced, hashed and
    made read-only."""
    files = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        sync(path)
        path.chmod(0o444)
        status = path.stat()
        files.append(
            {
                "path": path.relative_to(folder).as_posix(),
                "size": status.st_size,
                "sha256": written_sha256(path),
                "mtime_ns": status.st_mtime_ns,
            }
        )
    manifest = {"schema_version": 1, **data, "artifact_digest": _digest(files), "files": files}
    path = folder / MANIFEST
    path.write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    sync(path)
    path.chmod(0o444)
    return manifest


def _digest(files: Iterable[Mapping[str, Any]]) -> str:
    text = "".join(f"{file['path']} {file['sha256']}\n" for file in files)
    return hashlib.sha256(text.encode()).hexdigest()


def read_artifact(folder: Path) -> Artifact | None:
    """Return the artifact in a folder, in the store or linked from it; None if there is none."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), list):
        return None
    for file in manifest["files"]:
        if not isinstance(file, dict):
            return None
        if any(not isinstance(file.get(name), kind) for name, kind in _FILE_FIELDS.items()):
            return None
    return Artifact(folder, manifest)


def damage(artifact: Artifact) -> str | None:
    """Return what is wrong with an artifact by the cheap check, None if nothing is."""
    for file in artifact.manifest["files"]:
        path = artifact.folder / file["path"]
        found = size_and_time(path)
        if found == (file["size"], file["mtime_ns"]):
            continue
        problem = _difference(path, file)
        if problem:
            return problem
        with contextlib.suppress(OSError):  # the next check is cheap again, where that is allowed
            os.utime(path, ns=(file["mtime_ns"], file["mtime_ns"]))
    return None


def check_artifact(artifact: Artifact) -> list[str]:
    """Compare every file of an artifact with its manifest, in full; return what differs."""
    listed = {str(file["path"]): file for file in artifact.manifest["files"]}
    found = (_difference(artifact.folder / name, file) for name, file in listed.items())
    problems = [problem for problem in found if problem]
    for path in artifact.folder.rglob("*"):
        name = path.relative_to(artifact.folder).as_posix()
        if path.is_file() and name not in listed and name != MANIFEST:
            problems.append(f"{name}: not in the manifest")
    if artifact.manifest.get("artifact_digest") != _digest(artifact.manifest["files"]):
        problems.append(f"{MANIFEST}: its artifact_digest is not that of its files")
    return sorted(problems)


def require_intact(artifact: Artifact) -> None:
    """Check in full what is about to leave the store's care: a copy, something published. Raises
    StoreError with all that differs."""
    problems = check_artifact(artifact)
    if problems:
        raise StoreError([Problem(problem, str(artifact.folder)) for problem in problems])


def _difference(path: Path, file: Mapping[str, Any]) -> str | None:
    """Return how a file differs from its entry in the manifest; it is read if need be."""
    found = size_and_time(path) if path.is_file() else None
    if found is None:
        return f"{file['path']}: missing"
    if found[0] != file["size"]:
        return f"{file['path']}: {found[0]} bytes, manifest {file['size']}"
    try:
        same = file_sha256(path) == file["sha256"]
    except FileNotFoundError:  # another process has just set it aside
        return f"{file['path']}: missing"
    if not same:
        return f"{file['path']}: content differs from the manifest's sha256"
    return None
