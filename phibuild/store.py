"""Content-addressed store of artifacts, references and measurements.

`<root>/artifacts/<key>/` holds an artifact's files and manifest.json; `references/<key>/` the
original's logits; `measures/<key>.json` what judging found. Everything is made in `<root>/tmp`,
synced and renamed into place, so that a reader sees a whole entry or none. Files are read-only:
outputs hold hard links to them.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phibuild.errors import Problem, StoreError
from phibuild.locks import held
from phibuild.workspaces import sweep, workspace

MANIFEST = "manifest.json"
_FOLDERS = ("artifacts", "references", "measures", "digests", "tmp", "locks", "damaged")


@dataclass(frozen=True)
class Artifact:
    """A complete artifact in the store (or a folder linked from it)."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def size_bytes(self) -> int:
        return sum(int(file["size"]) for file in self.manifest["files"])

    @property
    def digest(self) -> str:
        return str(self.manifest["artifact_digest"])


def content_key(data: Mapping[str, Any]) -> str:
    """Return the sha256 of the data's canonical JSON: the name of what the data decides."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Store:
    """The store at `root`; created when first written to."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def prepare(self) -> None:
        """Make the store's folders, remove what killed processes left in them. Raises StoreError
        if they cannot be made."""
        try:
            for name in _FOLDERS:
                (self.root / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                Problem(
                    f"the store cannot be written: {error.strerror or error}",
                    str(self.root),
                    "set PHIBUILD_STORE to a folder that can be written",
                )
            ) from error
        with contextlib.suppress(OSError):  # a store that cannot be written has its reader too
            sweep(self.root / "tmp")

    @contextlib.contextmanager
    def lock(self, key: str, cancelled: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Hold the lock of one entry against other processes. Raises StoreError if `cancelled`
        says so while another one holds it."""
        with held(self.root / "locks" / f"{key}.lock", cancelled=cancelled):
            yield

    def workspace(self) -> contextlib.AbstractContextManager[Path]:
        """Give a temporary folder on the store's file system; it is removed at the end, or by the
        next build if this process is killed."""
        return workspace(self.root / "tmp")

    # -- artifacts

    def artifact(self, key: str) -> Artifact | None:
        """Return the artifact of a key if it is there and its files are as they were written
        (size and modification time); a damaged one is set aside and counts as absent."""
        folder = self.root / "artifacts" / key
        artifact = read_artifact(folder)
        if artifact is None:
            return None
        if any(
            _stat(folder / file["path"]) != (file["size"], file["mtime_ns"])
            for file in artifact.manifest["files"]
        ):
            with contextlib.suppress(OSError):  # a store that cannot be written has its reader too
                self._set_aside(folder)
            return None
        return artifact

    def publish(self, key: str, folder: Path, manifest: Mapping[str, Any]) -> Artifact:
        """Move a finished folder of the workspace into the store under `key`.

        Every file is synced, hashed and made read-only; manifest.json lists them all.
        """
        files = []
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            sync(path)
            path.chmod(0o444)
            status = path.stat()
            files.append(
                {
                    "path": path.relative_to(folder).as_posix(),
                    "size": status.st_size,
                    "sha256": file_sha256(path),
                    "mtime_ns": status.st_mtime_ns,
                }
            )
        digest = hashlib.sha256(
            "".join(f"{file['path']} {file['sha256']}\n" for file in files).encode()
        ).hexdigest()
        full = {"schema_version": 1, "key": key, **manifest, "artifact_digest": digest}
        full["files"] = files
        path = folder / MANIFEST
        path.write_text(json.dumps(full, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        sync(path)
        path.chmod(0o444)
        target = self.root / "artifacts" / key
        self._move(folder, target)
        return Artifact(target, full)

    # -- references and measurements

    def reference(self, key: str) -> Path | None:
        folder = self.root / "references" / key
        return folder if (folder / "meta.json").exists() else None

    def publish_reference(self, key: str, folder: Path) -> Path:
        for path in folder.iterdir():
            sync(path)
        target = self.root / "references" / key
        self._move(folder, target)
        return target

    def measure(self, key: str) -> dict[str, Any] | None:
        try:
            data = json.loads((self.root / "measures" / f"{key}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return data if isinstance(data, dict) else None

    def publish_measure(self, key: str, data: Mapping[str, Any]) -> None:
        text = json.dumps(data, indent=1, sort_keys=True)
        self._write(self.root / "measures" / f"{key}.json", text)

    # -- checkpoints' digests

    def file_digest(self, path: Path) -> str:
        """Return a checkpoint file's sha256; remembered by path, size and modification time."""
        path = path.resolve()
        entry = self._digest_entry(path)
        known = self._read_digest(entry, path)
        if known is None:
            size, mtime = _stat(path) or (0, 0)
            known = file_sha256(path)
            text = json.dumps({"size": size, "mtime_ns": mtime, "sha256": known})
            self._write(entry, text)
        return known

    def known_digest(self, path: Path) -> str | None:
        """Return the remembered sha256 of a file, None if it would have to be read."""
        path = path.resolve()
        return self._read_digest(self._digest_entry(path), path)

    def _digest_entry(self, path: Path) -> Path:
        name = hashlib.sha256(str(path).encode()).hexdigest()
        return self.root / "digests" / f"{name}.json"

    def _read_digest(self, entry: Path, path: Path) -> str | None:
        try:
            data = json.loads(entry.read_text(encoding="utf-8"))
            if (data["size"], data["mtime_ns"]) == _stat(path):
                return str(data["sha256"])
        except (OSError, ValueError, KeyError):
            pass  # not remembered, or not readable: it is computed anew
        return None

    def _write(self, path: Path, text: str) -> None:
        with self.workspace() as folder:
            write_atomically(path, text, folder)

    def _move(self, folder: Path, target: Path) -> None:
        folder.chmod(0o755)
        if target.exists():
            self._set_aside(target)
        os.rename(folder, target)
        sync(target.parent)

    def _set_aside(self, folder: Path) -> None:
        """Keep a damaged entry for whoever wants to look, out of the way."""
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            os.rename(folder, self.root / "damaged" / f"{folder.name}-{secrets.token_hex(4)}")


def read_artifact(folder: Path) -> Artifact | None:
    """Return the artifact in a folder, in the store or linked from it; None if there is none."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), list):
        return None
    return Artifact(folder, manifest)


def check_artifact(artifact: Artifact) -> list[str]:
    """Compare every file of an artifact with its manifest, in full; return what differs."""
    problems = []
    listed = {str(file["path"]): file for file in artifact.manifest["files"]}
    for name, file in listed.items():
        path = artifact.folder / name
        if not path.is_file():
            problems.append(f"{name}: missing")
        elif path.stat().st_size != file["size"]:
            problems.append(f"{name}: {path.stat().st_size} bytes, manifest {file['size']}")
        elif file_sha256(path) != file["sha256"]:
            problems.append(f"{name}: content differs from the manifest's sha256")
    for path in artifact.folder.rglob("*"):
        name = path.relative_to(artifact.folder).as_posix()
        if path.is_file() and name not in listed and name != MANIFEST:
            problems.append(f"{name}: not in the manifest")
    return sorted(problems)


def link_tree(source: Path, target: Path) -> None:
    """Mirror a folder with hard links; copy where the file system does not allow them. The target
    is there as a whole or not at all."""
    partial = target.parent / f".{target.name}.partial"
    partial.mkdir(parents=True)
    for path in sorted(source.rglob("*")):
        to = partial / path.relative_to(source)
        if path.is_dir():
            to.mkdir(parents=True, exist_ok=True)
            continue
        try:
            os.link(path, to)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
                raise
            shutil.copy2(path, to)
    os.rename(partial, target)


def write_atomically(path: Path, text: str, workspace: Path | None = None) -> None:
    """Replace a file by new text; a reader sees the old or the new one, whole. It is written in
    `workspace` (default: beside the file), where a kill leaves it."""
    fd, temporary = tempfile.mkstemp(dir=workspace or path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def sync(path: Path) -> None:
    """Flush a file or a folder to disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _stat(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns
