"""A small process that ends runners and their children when phibuild is gone, however it ended.

Run as a program it reads lines from standard input: `+ID` for a process group that has started,
`-ID` for one that has ended. When the stream closes, phibuild has ended, and what is left of the
groups is killed; on Linux, whatever has the run's mark in its environment, too: a child that has
left its runner's group. The kernel does this for the runners themselves on Linux alone, and nowhere
for their children.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from types import TracebackType

MARK = "PHIBUILD_RUN"
_PASSES, _PAUSE_SECONDS = 20, 0.02


class Guard:
    """The guard of one run. If it cannot be told something it has been killed itself, and the run
    goes on without it."""

    def __init__(self) -> None:
        self.mark = {MARK: uuid.uuid4().hex}
        """What the environment of every runner must have."""
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, *self.mark.values()],
            stdin=subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C in the terminal is not for it
        )
        self._lock = threading.Lock()

    def __enter__(self) -> Guard:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):
            self._process.communicate()

    def watch(self, group: int) -> None:
        """Have a process group ended with this process."""
        self._tell(f"+{group}\n")

    def forget(self, group: int) -> None:
        """Leave a process group alone: it has ended, and its number may be used again."""
        self._tell(f"-{group}\n")

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None  # opened as a pipe above
        with self._lock, contextlib.suppress(OSError):
            self._process.stdin.write(line.encode("ascii"))
            self._process.stdin.flush()


def kill_marked(mark: dict[str, str]) -> None:
    """Kill every process that has a variable in its environment, in whatever group or session
    (Linux; elsewhere none is found)."""
    wanted = {f"{name}={value}".encode("ascii") for name, value in mark.items()}
    for _ in range(_PASSES):  # some are started while others are looked through
        found = False
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has ended, or is another user's
                if wanted & {*(folder / "environ").read_bytes().split(b"\0")}:
                    os.kill(int(folder.name), signal.SIGKILL)
                    found = True
        if not found:
            return
        time.sleep(_PAUSE_SECONDS)


def main() -> None:
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)
    groups: set[int] = set()
    for line in sys.stdin:
        number = int(line[1:])
        if line[0] == "+":
            groups.add(number)
        else:
            groups.discard(number)
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
    kill_marked({MARK: sys.argv[1]})


if __name__ == "__main__":
    main()
