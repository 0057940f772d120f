"""Text as terminals show it: columns by wcwidth, screens by pyte, programs behind a pty."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import pyte
from wcwidth import wcswidth

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
HOSTILE = (
    "<script>alert(1)</script>", "[red]not red[/red]", "\x1b[31mred\x1b[0m\x1b]0;title\x07",
    "line\nbreak\r\ttab", "\u202egnippilf", "中文模型名称-非常長的名字", "naïve café",
    "half\ud800", "x" * 120, "a b\u00a0c", "\uff57\uff49\uff44\uff45",
    "{braces} %s $HOME `id`", "\u2028\u2029",
)  # fmt: skip


def too_wide(text: str, width: int) -> list[tuple[int, str]]:
    """Return the lines that take more than `width` columns, or that do more to a terminal than to
    take columns (-1), with the columns that they take."""
    found = []
    for line in text.split("\n"):
        taken = wcswidth(ESCAPE.sub("", line))
        if not 0 <= taken <= width:
            found.append((taken, line))
    return found


@dataclass
class Terminal:
    """A program behind a pty of so many columns and rows, and what stands on its screen."""

    process: subprocess.Popen[bytes]
    master: int
    screen: pyte.HistoryScreen
    stream: pyte.ByteStream
    raw: bytearray = field(default_factory=bytearray)

    @property
    def lines(self) -> list[str]:
        """What is to be seen, without spaces at the ends."""
        return [line.rstrip() for line in self.screen.display]

    @property
    def text(self) -> str:
        return "\n".join(self.lines).strip("\n")

    def read(self, seconds: float) -> bool:
        """Take what the program writes in so many seconds; False if there will be no more."""
        ready, _, _ = select.select([self.master], [], [], seconds)
        if not ready:
            return True
        try:
            data = os.read(self.master, 1 << 16)
        except OSError:  # as Linux says that the other end is closed
            return False
        self.raw += data
        self.stream.feed(data)
        return bool(data)

    def until(self, seen: Callable[[str], object], seconds: float = 60.0) -> str:
        """Return the screen once `seen` says so; fails if it does not in time."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            alive = self.read(0.05)
            if seen(self.text):
                return self.text
            if not alive:
                break
        raise AssertionError(f"not seen on the screen:\n{self.text}")

    def end(self, seconds: float = 60.0) -> int:
        """Read on until the program ends; return its exit code."""
        deadline = time.monotonic() + seconds
        while self.read(0.1) and time.monotonic() < deadline:
            pass
        return self.process.wait(max(deadline - time.monotonic(), 1))


@contextmanager
def terminal(
    words: Sequence[str],
    columns: int,
    rows: int,
    environ: Mapping[str, str] | None = None,
    cwd: str | None = None,
) -> Iterator[Terminal]:
    """Start a program behind a pty, in an environment that says nothing of colours or columns but
    for `environ`; it is killed at the end."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    silent = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TTY_COMPATIBLE", "COLORTERM")
    clean = {key: value for key, value in os.environ.items() if key not in silent}
    process = subprocess.Popen(
        words, stdin=slave, stdout=slave, stderr=slave, cwd=cwd, start_new_session=True,
        env={**clean, "TERM": "xterm-256color", "PYTHONUTF8": "1", **(environ or {})},
    )  # fmt: skip
    os.close(slave)
    screen = pyte.HistoryScreen(columns, rows, history=10_000)
    try:
        yield Terminal(process, master, screen, pyte.ByteStream(screen))
    finally:
        process.kill()
        process.wait()
        os.close(master)
