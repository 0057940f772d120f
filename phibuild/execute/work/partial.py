"""What steps keep in the store until they are finished, so that a kill costs little."""

from __future__ import annotations

import shutil
from pathlib import Path

from phibuild.checkpoints.facts import Checkpoint
from phibuild.store.store import PARTIAL, Store, content_key
from phibuild.system.files import size_and_time


def begin(store: Store, key: str, checkpoint: Checkpoint) -> Path:
    """Return the folder, which may have something already, for what is begun under a key of a
    checkpoint. What was begun of files that were changed meanwhile is another model's, whatever
    they are now, and removed. Raises OSError."""
    files = {name: size_and_time(path) for name, path in checkpoint.links.items()}
    folder = store.root / PARTIAL / key / content_key(files)[:16]
    for other in folder.parent.glob("*"):
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def finish(store: Store, key: str) -> None:
    """Remove what was begun under a key."""
    shutil.rmtree(store.root / PARTIAL / key, ignore_errors=True)
