"""Temporary folders that go away whatever happens to their process.

Beside the folder `<name>` its owner holds a lock on `<name>.lock`. Whoever can take the lock of a
folder knows that its owner is dead, on this machine or on another one, and removes both.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from phibuild.system.locks import held_if_free, is_held

_LOCK = ".lock"


@contextlib.contextmanager
def workspace(parent: Path) -> Iterator[Path]:
    """Give an empty folder below `parent`; it is removed at the end."""
    while True:
        folder = parent / secrets.token_hex(6)
        lock = parent / f"{folder.name}{_LOCK}"
        with held_if_free(lock) as fd:
            if fd is None:  # a sweeper took the file in the instant between making and locking it
                continue
            folder.mkdir()
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
                lock.unlink(missing_ok=True)
            return


def sweep(parent: Path) -> None:
    """Remove the folders below `parent` whose owners are dead."""
    for name in _names(parent):
        lock = parent / f"{name}{_LOCK}"
        with held_if_free(lock) as fd:
            if fd is None:
                continue
            path = parent / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
            lock.unlink(missing_ok=True)


def dead(parent: Path) -> list[Path]:
    """Return the folders below `parent` whose owners are dead."""
    return [parent / name for name in _names(parent) if not is_held(parent / f"{name}{_LOCK}")]


def _names(parent: Path) -> list[str]:
    return sorted({path.name.removesuffix(_LOCK) for path in parent.glob("*")})
