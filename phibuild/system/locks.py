"""Locks that end with their process: kill -9 leaves none of them held.

flock(2) on a file that is there for that alone. It holds among the processes of a machine, and
among machines where the folder is shared by a file system that passes it on (NFS does; Lustre if
mounted with -o flock). A child that is given the descriptor keeps the lock until it ends too.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from phibuild.errors import Problem, StoreError

if sys.platform != "win32":
    import fcntl

_POLL_SECONDS = 0.1


@contextlib.contextmanager
def held(
    path: Path, *, shared: bool = False, cancelled: Callable[[], bool] = lambda: False
) -> Iterator[int]:
    """Wait for a lock and hold it; gives its descriptor. Several may hold a `shared` one at once.
    Raises StoreError if `cancelled` says so while another one holds it."""
    while (fd := _take(path, shared=shared)) is None:
        if cancelled():
            raise StoreError(Problem("interrupted"))
        time.sleep(_POLL_SECONDS)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def held_if_free(path: Path) -> Iterator[int | None]:
    """Hold a lock if nobody else does; gives None if somebody does."""
    fd = _take(path, shared=False)
    try:
        yield fd
    finally:
        if fd is not None:
            os.close(fd)


def is_held(path: Path) -> bool:
    """Say whether somebody holds a lock."""
    if not path.exists():
        return False
    with held_if_free(path) as fd:
        return fd is None


if sys.platform == "win32":

    def _take(path: Path, *, shared: bool) -> int | None:
        raise StoreError(Problem("building needs Linux, macOS or WSL", str(path)))

else:

    def _take(path: Path, *, shared: bool) -> int | None:
        """Open and lock a file; None if another one holds it."""
        while True:
            fd = _open(path)
            try:
                fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                # Its last holder may have removed the file after it was opened here.
                if _same_file(fd, path):
                    return fd
            except BlockingIOError:
                os.close(fd)
                return None
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:
        # Another user's file can be locked too; what is not there cannot be made.
        if not path.exists():
            raise
        return os.open(path, os.O_RDONLY)


def _same_file(fd: int, path: Path) -> bool:
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False
    mine = os.fstat(fd)
    return (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)
