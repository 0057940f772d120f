"""Content-addressed store of artifacts, references and measurements.

`<root>/artifacts/<key>/` holds an artifact's files and manifest.json; `references/<key>/` what the
original left (its logits, its activations), with a manifest too; `measures/<key>.json` what
judging found. `partial/<key>/` is what a long step has done so far. Everything else is made in
`<root>/tmp`, synced and renamed into place, so that a reader sees a whole entry or none. Files are
read-only: outputs hold hard links to them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from phibuild.errors import Problem, StoreError
from phibuild.schema import document_text
from phibuild.store.documents import (
    ArtifactFacts,
    FileDigest,
    Measure,
    NonFinite,
    StoredMeasure,
)
from phibuild.store.finite import read_weights
from phibuild.store.manifest import (
    MANIFEST,
    Sealed,
    StoredArtifact,
    check_artifact,
    damage,
    read_artifact,
    read_sealed,
    seal,
    seal_artifact,
)
from phibuild.system.files import file_sha256, size_and_time, sync, write_atomically
from phibuild.system.locks import held
from phibuild.system.workspaces import sweep, workspace

ARTIFACTS, REFERENCES, MEASURES = "artifacts", "references", "measures"
PARTIAL = "partial"
"""What a run that was killed goes on from."""
S = TypeVar("S", bound=Sealed)
_OTHERS = (PARTIAL, "digests", "usage", "runs", "tmp", "locks", "damaged")
_FOLDERS = (ARTIFACTS, REFERENCES, MEASURES, *_OTHERS)


def content_key(data: Mapping[str, object]) -> str:
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
        self.make_folders()
        with contextlib.suppress(OSError):  # a store that cannot be written has its reader too
            sweep(self.root / "tmp")

    def make_folders(self) -> None:
        """Make those of the store's folders that are not there. Raises StoreError if that fails."""
        try:
            for name in _FOLDERS:
                (self.root / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(self.root, error) from error

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

    def artifact(self, key: str) -> StoredArtifact | None:
        """Return the artifact of a key if it is there and its files are as they were written, by
        the cheap check; a damaged one is set aside and counts as absent."""
        return self._checked(read_artifact(self.root / ARTIFACTS / key))

    def has_artifacts(self) -> bool:
        """Return whether there is any artifact, as far as the folder's names say."""
        folder = self.root / ARTIFACTS
        return folder.is_dir() and any(folder.iterdir())

    def publish(self, key: str, folder: Path, facts: ArtifactFacts) -> StoredArtifact:
        """Move a finished folder of the workspace into the store under `key`; its manifest.json
        has the facts and lists the files."""
        manifest = seal_artifact(folder, key, facts)
        return StoredArtifact(self._move(ARTIFACTS, key, folder), manifest)

    def reference(self, key: str) -> Path | None:
        """Return the folder of what the original left under a key, checked as artifacts are."""
        found = self._checked(read_sealed(self.root / REFERENCES / key))
        return found.folder if found else None

    def publish_reference(self, key: str, folder: Path) -> Path:
        seal(folder, key)
        return self._move(REFERENCES, key, folder)

    def set_aside_if_damaged(self, kind: str, key: str) -> bool:
        """Check an entry of ARTIFACTS or REFERENCES in full; say whether it had to be set aside."""
        folder = self.root / kind / key
        found = read_entry(kind, folder)
        problems = check_artifact(found) if found else [f"{MANIFEST}: missing or damaged"]
        if problems:
            self._set_aside(folder, problems[0])
        return bool(problems)

    def _checked(self, found: S | None) -> S | None:
        problem = damage(found) if found else None
        if found is None or problem is None:
            return found
        with contextlib.suppress(OSError):  # a store that cannot be written has its reader too
            self._set_aside(found.folder, problem)
        return None

    def _move(self, kind: str, key: str, folder: Path) -> Path:
        target = self.root / kind / key
        folder.chmod(0o755)
        if target.exists():
            self._set_aside(target, "it was in the way of a new one")
        os.rename(folder, target)
        sync(target.parent)
        return target

    def _set_aside(self, folder: Path, problem: str) -> None:
        """Keep a damaged entry for whoever wants to look, out of the way."""
        found = read_artifact(folder)
        name = found.what if found else f"{folder.parent.name}/{folder.name[:12]}"
        aside = self.root / "damaged" / f"{folder.name}-{secrets.token_hex(4)}"
        try:
            os.rename(folder, aside)
        except FileNotFoundError:  # another process was faster
            return
        self._say(f"damaged in the store, set aside: {name}: {problem}\n    now {aside}")

    # -- measurements

    def measure(self, key: str) -> Measure | None:
        """Return what judging found, None if it is not there as it was written."""
        try:
            data = json.loads(self._measure_path(key).read_text(encoding="utf-8"))
            found = data["measure"]
            return Measure.read(found) if content_key(found) == data["sha256"] else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def publish_measure(self, key: str, measure: Measure) -> None:
        sha256 = content_key(measure.model_dump(mode="json"))
        document = StoredMeasure(measure=measure, sha256=sha256)
        self.write(self._measure_path(key), document_text(document))

    def _measure_path(self, key: str) -> Path:
        return self.root / MEASURES / f"{key}.json"

    # -- checkpoints' digests

    def file_digest(self, path: Path) -> str:
        """Return a checkpoint file's sha256; remembered by path, size and modification time."""
        return self._digest(path.resolve(), weights=False).sha256

    def weight_digest(
        self, path: Path, *, read: bool = True
    ) -> tuple[str, NonFinite | None] | None:
        """Return a weight file's sha256 and its first weight that is not finite, remembered as
        `file_digest` does; None if it would have to be read and is not to be. Raises ValueError if
        it is no safetensors file."""
        path = path.resolve()
        if not read and not ((known := self._read_digest(path)) and known.of_weights):
            return None
        known = self._digest(path, weights=True)
        return known.sha256, known.nonfinite

    def _digest(self, path: Path, *, weights: bool) -> FileDigest:
        known = self._read_digest(path)
        if known is None or (weights and not known.of_weights):
            size, mtime = size_and_time(path) or (0, 0)
            if weights:
                sha256, found = read_weights(path)
                known = FileDigest(size=size, mtime_ns=mtime, sha256=sha256, nonfinite=found)
            else:
                known = FileDigest(size=size, mtime_ns=mtime, sha256=file_sha256(path))
            with contextlib.suppress(OSError):  # it is read again where it cannot be remembered
                text = json.dumps(known.model_dump(mode="json", exclude_unset=True))
                self.write(self._digest_path(path), text)
        return known

    def known_digest(self, path: Path) -> str | None:
        """Return the remembered sha256 of a file, None if it would have to be read."""
        known = self._read_digest(path.resolve())
        return known.sha256 if known else None

    def forget_digest(self, path: Path) -> None:
        """Have a file read again when its digest is asked for."""
        self._digest_path(path.resolve()).unlink(missing_ok=True)

    def _digest_path(self, path: Path) -> Path:
        name = hashlib.sha256(str(path).encode()).hexdigest()
        return self.root / "digests" / f"{name}.json"

    def _read_digest(self, path: Path) -> FileDigest | None:
        try:
            text = self._digest_path(path).read_text(encoding="utf-8")
            known = FileDigest.read(json.loads(text))
        except (OSError, ValueError):
            return None  # not remembered, or not readable: it is computed anew
        return known if (known.size, known.mtime_ns) == size_and_time(path) else None

    def write(self, path: Path, text: str) -> None:
        """Replace a small file of the store; what a kill leaves of it is swept."""
        with self.workspace() as folder:
            write_atomically(path, text, folder)


def read_entry(kind: str, folder: Path) -> Sealed | None:
    """Return an entry of ARTIFACTS or REFERENCES as its manifest lists it, unchecked."""
    return read_artifact(folder) if kind == ARTIFACTS else read_sealed(folder)


def unwritable(root: Path, error: OSError) -> StoreError:
    """Return the error of a store that cannot be written."""
    return StoreError(
        Problem(
            f"the store cannot be written: {error.strerror or error}",
            str(root),
            "set PHIBUILD_STORE to a folder that can be written",
        )
    )
