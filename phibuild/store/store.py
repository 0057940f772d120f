"""Content-addressed store of artifacts, references and measurements.

`<root>/artifacts/<key>/` holds an artifact's files and manifest.json; `references/<key>/` what the
original left (its logits, its activations), with a manifest too; `measures/<key>.json` what
judging found. Everything is made in `<root>/tmp`, synced and renamed into place, so that a reader
sees a whole entry or none. Files are read-only: outputs hold hard links to them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from phibuild.errors import Problem, StoreError
from phibuild.store.finite import NonFinite, read_weights
from phibuild.store.manifest import MANIFEST, Artifact, check_artifact, damage, read_artifact, seal
from phibuild.system.files import file_sha256, size_and_time, sync, write_atomically
from phibuild.system.locks import held
from phibuild.system.workspaces import sweep, workspace

ARTIFACTS, REFERENCES, MEASURES = "artifacts", "references", "measures"
_FOLDERS = (ARTIFACTS, REFERENCES, MEASURES, "digests", "usage", "runs", "tmp", "locks", "damaged")


def content_key(data: Mapping[str, Any]) -> str:
    """Return the sha256 of the data's canonical JSON: the name of what the data decides."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class Store:
    """The store at `root`; created when first written to. `say` is told of every damaged entry
    that is found, in a sentence."""

    def __init__(self, root: Path, say: Callable[[str], None] = lambda text: None) -> None:
        self.root = root
        self._say = say

    def prepare(self) -> None:
        """Make the store's folders, remove what killed processes left in them. Raises StoreError
        if they cannot be made."""
        try:
            for name in _FOLDERS:
                (self.root / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(self.root, error) from error
        with contextlib.suppress(OSError):  # a store that cannot be written has its reader too
            sweep(self.root / "tmp")

    def require_writable(self) -> None:
        """Raise StoreError if nothing can be made in the store."""
        try:
            with self.workspace():
                pass
        except OSError as error:
            raise unwritable(self.root, error) from error

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

    # -- artifacts, and what the original left

    def artifact(self, key: str) -> Artifact | None:
        """Return the artifact of a key if it is there and its files are as they were written, by
        the cheap check; a damaged one is set aside and counts as absent."""
        return self._entry(ARTIFACTS, key)

    def has_artifacts(self) -> bool:
        """Return whether there is any artifact, as far as the folder's names say."""
        folder = self.root / ARTIFACTS
        return folder.is_dir() and any(folder.iterdir())

    def publish(self, key: str, folder: Path, manifest: Mapping[str, Any]) -> Artifact:
        """Move a finished folder of the workspace into the store under `key`; its manifest.json
        has the given data and lists the files."""
        return self._publish(ARTIFACTS, key, folder, manifest)

    def reference(self, key: str) -> Path | None:
        """Return the folder of what the original left under a key, checked as artifacts are."""
        found = self._entry(REFERENCES, key)
        return found.folder if found else None

    def publish_reference(self, key: str, folder: Path) -> Path:
        return self._publish(REFERENCES, key, folder, {}).folder

    def set_aside_if_damaged(self, kind: str, key: str) -> bool:
        """Check an entry of ARTIFACTS or REFERENCES in full; say whether it had to be set aside."""
        folder = self.root / kind / key
        artifact = read_artifact(folder)
        problems = check_artifact(artifact) if artifact else [f"{MANIFEST}: missing or damaged"]
        if problems:
            self._set_aside(folder, problems[0])
        return bool(problems)

    def _entry(self, kind: str, key: str) -> Artifact | None:
        folder = self.root / kind / key
        artifact = read_artifact(folder)
        if artifact is None:
            return None
        problem = damage(artifact)
        if problem is None:
            return artifact
        with contextlib.suppress(OSError):  # a store that cannot be written has its reader too
            self._set_aside(folder, problem)
        return None

    def _publish(self, kind: str, key: str, folder: Path, manifest: Mapping[str, Any]) -> Artifact:
        full = seal(folder, {"key": key, **manifest})
        target = self.root / kind / key
        folder.chmod(0o755)
        if target.exists():
            self._set_aside(target, "it was in the way of a new one")
        os.rename(folder, target)
        sync(target.parent)
        return Artifact(target, full)

    def _set_aside(self, folder: Path, problem: str) -> None:
        """Keep a damaged entry for whoever wants to look, out of the way."""
        name = describe(read_artifact(folder)) or f"{folder.parent.name}/{folder.name[:12]}"
        aside = self.root / "damaged" / f"{folder.name}-{secrets.token_hex(4)}"
        try:
            os.rename(folder, aside)
        except FileNotFoundError:  # another process was faster
            return
        self._say(f"damaged in the store, set aside: {name}: {problem}\n    now {aside}")

    # -- measurements

    def measure(self, key: str) -> dict[str, Any] | None:
        """Return what judging found, None if it is not there as it was written."""
        try:
            data = json.loads(self._measure_path(key).read_text(encoding="utf-8"))
            found = data["measure"]
            return found if content_key(found) == data["sha256"] else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def publish_measure(self, key: str, data: Mapping[str, Any]) -> None:
        found = json.loads(json.dumps(data))  # as it will be read
        text = json.dumps({"measure": found, "sha256": content_key(found)}, indent=1)
        self.write(self._measure_path(key), text)

    def _measure_path(self, key: str) -> Path:
        return self.root / MEASURES / f"{key}.json"

    # -- checkpoints' digests

    def file_digest(self, path: Path) -> str:
        """Return a checkpoint file's sha256; remembered by path, size and modification time."""
        return str(self._digest(path, lambda path: {"sha256": file_sha256(path)})["sha256"])

    def weight_digest(
        self, path: Path, *, read: bool = True
    ) -> tuple[str, NonFinite | None] | None:
        """Return a weight file's sha256 and its first weight that is not finite, remembered as
        `file_digest` does; None if it would have to be read and is not to be. Raises ValueError if
        it is no safetensors file."""
        if not read and "nonfinite" not in (self._read_digest(path.resolve()) or {}):
            return None
        known = self._digest(path, _weight_record, "nonfinite")
        found = known["nonfinite"]
        return str(known["sha256"]), NonFinite.from_json(found) if found else None

    def _digest(
        self, path: Path, read: Callable[[Path], dict[str, Any]], wanted: str = "sha256"
    ) -> dict[str, Any]:
        path = path.resolve()
        known = self._read_digest(path)
        if known is None or wanted not in known:
            size, mtime = size_and_time(path) or (0, 0)
            known = {"size": size, "mtime_ns": mtime, **read(path)}
            with contextlib.suppress(OSError):  # it is read again where it cannot be remembered
                self.write(self._digest_path(path), json.dumps(known))
        return known

    def known_digest(self, path: Path) -> str | None:
        """Return the remembered sha256 of a file, None if it would have to be read."""
        known = self._read_digest(path.resolve())
        return str(known["sha256"]) if known else None

    def forget_digest(self, path: Path) -> None:
        """Have a file read again when its digest is asked for."""
        self._digest_path(path.resolve()).unlink(missing_ok=True)

    def _digest_path(self, path: Path) -> Path:
        name = hashlib.sha256(str(path).encode()).hexdigest()
        return self.root / "digests" / f"{name}.json"

    def _read_digest(self, path: Path) -> dict[str, Any] | None:
        try:
            data: dict[str, Any] = json.loads(self._digest_path(path).read_text(encoding="utf-8"))
            if (data["size"], data["mtime_ns"]) == size_and_time(path) and data["sha256"]:
                return data
        except (OSError, ValueError, KeyError, TypeError):
            pass  # not remembered, or not readable: it is computed anew
        return None

    def write(self, path: Path, text: str) -> None:
        """Replace a small file of the store; what a kill leaves of it is swept."""
        with self.workspace() as folder:
            write_atomically(path, text, folder)


def _weight_record(path: Path) -> dict[str, Any]:
    sha256, nonfinite = read_weights(path)
    return {"sha256": sha256, "nonfinite": nonfinite.to_json() if nonfinite else None}


def describe(artifact: Artifact | None) -> str | None:
    """Return model, backend and variant of an artifact, as far as its manifest has them."""
    if artifact is None or not isinstance(artifact.manifest.get("variant"), dict):
        return None
    manifest = artifact.manifest
    words = (manifest.get("model"), manifest.get("backend"), manifest["variant"].get("name"))
    return " ".join(str(word) for word in words if word)


def unwritable(root: Path, error: OSError) -> StoreError:
    """Return the error of a store that cannot be written."""
    return StoreError(
        Problem(
            f"the store cannot be written: {error.strerror or error}",
            str(root),
            "set PHIBUILD_STORE to a folder that can be written",
        )
    )
