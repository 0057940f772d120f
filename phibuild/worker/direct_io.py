"""Large files, written and read past the page cache. Standard library only.

What goes through the cache costs a page, a copy and, once memory is full, the search for a page to
drop: more CPU time than the conversions themselves, and what others had in the cache is gone. So a
large file's whole blocks go straight to the disk (O_DIRECT, open(2)), from aligned buffers that a
few threads write while the work goes on. What does not fill a block takes the usual way, and so
does everything where the file system has no other.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import hashlib
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from phibuild.worker.write_buffers import BLOCK, aligned, buffers

LARGE_BYTES = 64 << 20
"""Files from here on bypass the page cache: smaller ones are likely to be read again soon."""

_READ_BYTES = 4 << 20
_WORTHWHILE = 64 << 10  # a direct write costs as much as a copy of so many bytes
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_O_DIRECT = getattr(os, "O_DIRECT", 0)  # Linux


class OutputFile:
    """A new file of known size that is written in pieces, in any order and from any thread."""

    def __init__(self, path: Path, size: int) -> None:
        """Create the file with all its room. Raises OSError where there is none, and leaves no
        file; FileExistsError if there is one."""
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        self._direct = -1
        self._change = threading.Condition()
        self._pending = 0
        self._error: OSError | None = None
        try:
            _reserve(self._fd, size)
        except OSError:
            self.discard()
            raise
        if _O_DIRECT and size >= LARGE_BYTES:
            with contextlib.suppress(OSError):  # not on this file system
                self._direct = os.open(path, os.O_WRONLY | _O_DIRECT)

    def write(self, data: bytes | memoryview, offset: int) -> None:
        """Write `data` at `offset` bytes. Raises OSError, also for an earlier piece."""
        if self._error is not None:
            raise self._error
        view = memoryview(data).cast("B")
        if self._direct < 0:
            _write_all(self._fd, view, offset)
            return
        while view.nbytes:
            run = buffers().take(self, offset)
            count = run.fill(view)
            view, offset = view[count:], offset + count
            buffers().give(run, offset)

    def finish(self) -> None:
        """Wait until all is written. Raises OSError for what could not be."""
        if self._direct >= 0:
            buffers().flush(self)
        with self._change:
            self._change.wait_for(lambda: not self._pending)
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Close the file; again is fine. What `finish` has not seen written may be lost."""
        with contextlib.suppress(OSError):
            self.finish()
        for fd in (self._fd, self._direct):
            if fd >= 0:
                os.close(fd)
        self._fd = self._direct = -1

    def discard(self) -> None:
        """Close the file and remove it."""
        self.close()
        self.path.unlink(missing_ok=True)

    def begin(self) -> None:
        """See Sink."""
        with self._change:
            self._pending += 1

    def put(self, data: memoryview, offset: int) -> None:
        """See Sink: whole blocks are written directly."""
        error = None
        first = -offset % BLOCK
        last = (offset + data.nbytes) // BLOCK * BLOCK - offset
        try:
            if last - first < _WORTHWHILE:
                _write_all(self._fd, data, offset)
            else:
                _write_all(self._fd, data[:first], offset)
                try:
                    _write_all(self._direct, data[first:last], offset + first)
                except OSError as caught:
                    if caught.errno != errno.EINVAL:
                        raise
                    # It wants more than aligned blocks.
                    _write_all(self._fd, data[first:last], offset + first)
                _write_all(self._fd, data[last:], offset + last)
        except OSError as caught:
            error = caught
        with self._change:
            self._pending -= 1
            self._error = self._error or error
            self._change.notify_all()


def sha256_of_large(path: Path) -> str | None:
    """Return a file's sha256, read past the page cache; None where that is not to be had. The next
    piece is read while one is hashed."""
    if not _O_DIRECT:
        return None
    try:
        fd = os.open(path, os.O_RDONLY | _O_DIRECT)
    except OSError:
        return None
    digest = hashlib.sha256()
    spare, place, count = aligned(_READ_BYTES), 0, _READ_BYTES
    try:
        with ThreadPoolExecutor(1) as reader:
            coming = reader.submit(_read, fd, aligned(_READ_BYTES), place)
            while count == _READ_BYTES:  # a shorter piece is the last
                piece = coming.result()
                count = piece.nbytes
                place += count
                if count == _READ_BYTES:
                    coming = reader.submit(_read, fd, spare, place)
                digest.update(piece)
                spare = piece
        return digest.hexdigest()
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return None  # it wants more than aligned blocks
    finally:
        os.close(fd)


def _read(fd: int, buffer: memoryview, place: int) -> memoryview:
    """Fill `buffer` from the byte `place` on; return what of it there is until the file's end."""
    count = 0
    while count % BLOCK == 0 and count < buffer.nbytes:
        some = os.preadv(fd, [buffer[count:]], place + count)
        if not some:
            break
        count += some
    return buffer[:count]


def _write_all(fd: int, data: memoryview, offset: int) -> None:
    """Write all of `data`; pwrite may write less (2 GiB at most at a time on Linux)."""
    while data.nbytes:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written


def _reserve(fd: int, size: int) -> None:
    """Make an open file `size` bytes long. On Linux its blocks are allotted now, so that a full
    disk shows before the work; where a file system cannot do that (NFS before 4.2), it is sparse.
    """
    if size and sys.platform == "linux":
        # os.posix_fallocate would write a byte to each block where it is not supported.
        if _fallocate()(fd, 0, 0, size) == 0:
            return
        code = ctypes.get_errno()
        if code not in _UNSUPPORTED:
            raise OSError(code, os.strerror(code))
    os.ftruncate(fd, size)


@functools.cache
def _fallocate() -> ctypes._NamedFuncPointer:
    function = ctypes.CDLL(None, use_errno=True).fallocate
    function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    function.restype = ctypes.c_int
    return function
