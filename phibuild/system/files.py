"""Files that are written whole, linked, synced and digested."""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from phibuild.worker.direct_io import LARGE_BYTES, sha256_of_large


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def written_sha256(path: Path) -> str:
    """Return the sha256 of a file that has just been written: a large one is not in the page cache
    (worker/direct_io.py), and not read into it."""
    if path.stat().st_size < LARGE_BYTES:
        return file_sha256(path)
    return sha256_of_large(path) or file_sha256(path)


_FICLONE = 0x40049409
"""ioctl_ficlone(2): have one file share the other's blocks, of which each writes its own."""


def link_tree(source: Path, target: Path, copied: Sequence[str] = ()) -> bool:
    """Mirror a folder with hard links; return False if files were copied instead, because the file
    system does not allow links, or their names match a glob of `copied`: these share the blocks of
    the original at most (reflinks). The target is there as a whole or not at all."""
    linked = True
    partial = target.parent / f".{target.name}.partial"
    partial.mkdir(parents=True)
    for path in sorted(source.rglob("*")):
        to = partial / path.relative_to(source)
        if path.is_dir():
            to.mkdir(parents=True, exist_ok=True)
            continue
        if any(fnmatch.fnmatchcase(path.name, glob) for glob in copied):
            if not _cloned(path, to):
                shutil.copy2(path, to)
                linked = False
            continue
        try:
            os.link(path, to)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
                raise
            shutil.copy2(path, to)
            linked = False
    os.rename(partial, target)
    return linked


def _cloned(source: Path, target: Path) -> bool:
    """Make a reflink, with the times and the mode of the source; return whether the file system
    has them (Btrfs, XFS, bcachefs on Linux)."""
    if sys.platform != "linux":
        return False
    import fcntl

    try:
        with source.open("rb") as read, target.open("xb") as write:
            fcntl.ioctl(write.fileno(), _FICLONE, read.fileno())
    except OSError:
        target.unlink(missing_ok=True)
        return False
    shutil.copystat(source, target)
    return True


def write_atomically(path: Path, content: str | bytes, workspace: Path | None = None) -> None:
    """Replace a file by new content; a reader sees the old or the new one, whole. It is written in
    `workspace` (default: beside the file), where a kill leaves it."""
    fd, temporary = tempfile.mkstemp(dir=workspace or path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content if isinstance(content, bytes) else content.encode("utf-8"))
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


def size_and_time(path: Path) -> tuple[int, int] | None:
    """Return a file's size and modification time in ns; None if it cannot be seen."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns
