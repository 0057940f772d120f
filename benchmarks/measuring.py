"""Run a command and measure its whole process tree. Linux.

CPU seconds are the kernel's own account of the process and all descendants that were waited for.
Memory is sampled 20 times a second over the tree: resident bytes, and the anonymous part of them,
which cannot be dropped as pages of mapped files can. Bytes read and written are those that went to
and from storage (proc(5), /proc/PID/io); the files of the checkpoint are put out of the page cache
first, so that mapped reads count too.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Cost:
    """What a command took: seconds, and bytes."""

    wall_seconds: float
    cpu_seconds: float
    peak_rss_bytes: int
    peak_anonymous_bytes: int
    read_bytes: int
    written_bytes: int
    failed: str = ""
    """How the command ended, if it did not succeed: its cost is then what it took until there."""

    def __add__(self, other: Cost) -> Cost:
        """Return the cost of both, one after the other."""
        return Cost(
            self.wall_seconds + other.wall_seconds,
            self.cpu_seconds + other.cpu_seconds,
            max(self.peak_rss_bytes, other.peak_rss_bytes),
            max(self.peak_anonymous_bytes, other.peak_anonymous_bytes),
            self.read_bytes + other.read_bytes,
            self.written_bytes + other.written_bytes,
            self.failed or other.failed,
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def measured(
    command: Sequence[str | Path],
    environ: Mapping[str, str],
    log: Path,
    *,
    stdin: str = "",
    cold: Iterable[Path] = (),
    may_fail: bool = False,
    good: Collection[int] = (0,),
) -> Cost:
    """Run a command with `cold` files out of the page cache; what it prints goes to `log`. Exit
    codes other than the `good` ones are failures.

    With `may_fail` a failure is part of the answer, and the command is the first that the kernel
    ends when memory is short; otherwise a failure raises RuntimeError with the log's end.
    """
    for path in cold:
        _forget(path)
    started = time.monotonic()
    with log.open("ab") as out, tempfile.TemporaryFile() as words:
        words.write(stdin.encode())
        words.seek(0)
        process = subprocess.Popen(
            [str(word) for word in command],
            env={**os.environ, **environ},
            stdin=words,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        if may_fail:
            Path(f"/proc/{process.pid}/oom_score_adj").write_text("1000", "ascii")
        with _sampled(process.pid) as peaks:
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # its /proc entry stays
        io = dict(re.findall(r"(\w+): (\d+)", Path(f"/proc/{process.pid}/io").read_text("ascii")))
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    failed = ""
    if process.returncode == -signal.SIGKILL:
        failed = "killed (memory)"
    elif process.returncode not in good:
        failed = f"exit code {process.returncode}"
    if failed and not may_fail:
        tail = log.read_text("utf-8", "replace")[-2000:]
        raise RuntimeError(f"{' '.join(map(str, command))} failed: {failed}\n{tail}")
    return Cost(
        time.monotonic() - started,
        usage.ru_utime + usage.ru_stime,
        peaks[0],
        peaks[1],
        int(io["read_bytes"]),
        int(io["write_bytes"]),
        failed,
    )


def _forget(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextlib.contextmanager
def _sampled(pid: int) -> Iterator[list[int]]:
    """Give the peaks of resident and of anonymous bytes of a process and its descendants."""
    peaks, done = [0, 0], threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            now = [sum(sizes) for sizes in zip(*_tree(pid), strict=True)] or [0, 0]
            peaks[:] = [max(pair) for pair in zip(peaks, now, strict=True)]

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peaks
    finally:
        done.set()
        thread.join()


def _tree(pid: int) -> Iterator[tuple[int, int]]:
    """Yield resident and anonymous bytes of each process. A child that has forked and not yet
    started a program of its own shares its parent's pages, and is not counted."""
    todo = [(pid, b"")]
    while todo:
        number, parent = todo.pop()
        folder = Path(f"/proc/{number}")
        try:
            text = (folder / "status").read_text("ascii")
            words = (folder / "cmdline").read_bytes()
            for task in (folder / "task").iterdir():
                children = (task / "children").read_text("ascii").split()
                todo += [(int(child), words) for child in children]
        except (OSError, ValueError):
            continue  # it ended meanwhile
        sizes = dict(re.findall(r"(VmRSS|RssAnon):\s+(\d+) kB", text))
        if len(sizes) == 2 and words != parent:
            yield int(sizes["VmRSS"]) * 1024, int(sizes["RssAnon"]) * 1024
