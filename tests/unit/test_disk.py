"""Files written in pieces past the page cache, and read back."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from phibuild.worker import direct_io as disk
from phibuild.worker import write_buffers as disk_buffers
from phibuild.worker.direct_io import OutputFile, sha256_of_large
from phibuild.worker.write_buffers import BLOCK, Buffers

SIZE = 5 * (1 << 20) + 1234
CONTENT = random.Random(0).randbytes(SIZE)


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> Iterator[Buffers]:
    """Let every file be a large one, and three buffers be all that there are."""
    monkeypatch.setattr(disk, "LARGE_BYTES", 1)
    monkeypatch.setattr(disk_buffers, "BUFFERS_BYTES", 3 << 20)
    few = Buffers()
    monkeypatch.setattr(disk, "buffers", lambda: few)
    yield few
    assert len(few._free) == 3  # each has come back
    assert not few._runs


def _cut(sizes: list[int]) -> list[tuple[int, int]]:
    """Return (start, end) of pieces that fill the file, their sizes in turn from `sizes`."""
    pieces: list[tuple[int, int]] = []
    start = 0
    while start < SIZE:
        end = min(SIZE, start + sizes[len(pieces) % len(sizes)])
        pieces.append((start, end))
        start = end
    return pieces


def _write(file: OutputFile, piece: tuple[int, int]) -> None:
    file.write(CONTENT[piece[0] : piece[1]], piece[0])


def test_writes_large_files_directly(tmp_path: Path, large: Buffers) -> None:
    file = OutputFile(tmp_path / "f", SIZE)
    if file._direct < 0:
        pytest.skip("this file system has no direct writes")
    direct: list[int] = []
    plain = disk._write_all

    def watched(fd: int, data: memoryview, offset: int) -> None:
        if fd == file._direct:
            direct.append(data.nbytes)
            assert offset % BLOCK == 0
        plain(fd, data, offset)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(disk, "_write_all", watched)
        for piece in _cut([100_000]):
            _write(file, piece)
        file.finish()
    file.close()
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert sum(direct) > SIZE - 2 * BLOCK
    assert max(direct) == 1 << 20  # small pieces were gathered


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    sizes=st.lists(st.integers(1000, 3 << 20), min_size=1, max_size=5),
    threads=st.integers(1, 8),
    seed=st.integers(0, 1000),
)
def test_pieces_of_any_size_in_any_order(
    sizes: list[int], threads: int, seed: int, tmp_path: Path, large: Buffers
) -> None:
    path = tmp_path / "f"
    path.unlink(missing_ok=True)
    file = OutputFile(path, SIZE)
    pieces = _cut(sizes)
    random.Random(seed).shuffle(pieces)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda piece: _write(file, piece), pieces))
    file.finish()
    file.close()
    assert path.read_bytes() == CONTENT
    assert sha256_of_large(path) in (hashlib.sha256(CONTENT).hexdigest(), None)


def test_more_threads_and_files_than_buffers(tmp_path: Path, large: Buffers) -> None:
    """Whoever waits for a buffer gets one: nothing is ever stuck."""
    files = [OutputFile(tmp_path / str(number), SIZE) for number in range(4)]
    todo = [(file, piece) for piece in _cut([50_000, 5000, 200_000]) for file in files]
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                if not todo:
                    return
                file, piece = todo.pop(0)
            _write(file, piece)

    workers = [threading.Thread(target=work, daemon=True) for _ in range(24)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
        assert not worker.is_alive()
    for number, file in enumerate(files):
        file.finish()
        file.close()
        assert (tmp_path / str(number)).read_bytes() == CONTENT


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EIO])
def test_a_failing_direct_write(
    code: int, tmp_path: Path, large: Buffers, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = OutputFile(tmp_path / "f", SIZE)
    if file._direct < 0:
        pytest.skip("this file system has no direct writes")
    plain = disk._write_all

    def failing(fd: int, data: memoryview, offset: int) -> None:
        if fd == file._direct and offset >= 2 << 20:
            raise OSError(code, os.strerror(code))
        plain(fd, data, offset)

    monkeypatch.setattr(disk, "_write_all", failing)
    if code == errno.EINVAL:  # of blocks of another size: the usual way remains
        _write(file, (0, SIZE))
        file.finish()
        file.close()
        assert (tmp_path / "f").read_bytes() == CONTENT
        return
    with contextlib.suppress(OSError):  # at the next piece or at the end, as it comes
        _write(file, (0, SIZE))
    with pytest.raises(OSError, match=os.strerror(code)):
        file.finish()
    with pytest.raises(OSError, match=os.strerror(code)):
        _write(file, (0, 10))
    file.discard()
    assert not list(tmp_path.iterdir())


def test_a_file_system_without_direct_writes(
    tmp_path: Path, large: Buffers, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = os.open

    def refusing(path: Path, flags: int, *mode: int) -> int:
        if flags & disk._O_DIRECT:
            raise OSError(errno.EINVAL, "no direct I/O")
        return plain(path, flags, *mode)

    monkeypatch.setattr(os, "open", refusing)
    file = OutputFile(tmp_path / "f", SIZE)
    for piece in _cut([1 << 20]):
        _write(file, piece)
    file.finish()
    file.close()
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert sha256_of_large(tmp_path / "f") is None


def test_no_room_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"No space left|too large"):
        OutputFile(tmp_path / "f", 1 << 60)
    assert not list(tmp_path.iterdir())


def test_an_existing_file_is_kept(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("mine")
    with pytest.raises(FileExistsError):
        OutputFile(tmp_path / "f", SIZE)
    assert (tmp_path / "f").read_text() == "mine"


@pytest.mark.parametrize("size", [0, 1, BLOCK, 4 << 20, (4 << 20) + 1, (8 << 20) - 1, 8 << 20])
def test_hashes_files_of_any_size(size: int, tmp_path: Path) -> None:
    content = (CONTENT * 2)[:size]
    (tmp_path / "f").write_bytes(content)
    assert sha256_of_large(tmp_path / "f") in (hashlib.sha256(content).hexdigest(), None)
