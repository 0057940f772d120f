"""What a runner takes while it works: anonymous memory, sampled from outside; CPU seconds.

Anonymous memory is what a process cannot give back; pages of mapped files can be dropped, and
count as resident all the same. The kernel keeps no peak of it (proc(5), `RssAnon` of
/proc/PID/status), so it is looked at several times a second. Linux only; elsewhere it is not known.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_SHORTEST, _LONGEST = 0.1, 0.5
"""Seconds between two looks: of a runner's first moments many, later fewer."""


@dataclass
class Usage:
    """Of all runners of a step: the CPU seconds that they counted themselves, the largest
    anonymous memory of a runner with its children, in bytes (None: not known), and what it takes
    now."""

    cpu_seconds: float = 0.0
    peak_anonymous_bytes: int | None = None
    anonymous_bytes: int = 0

    @contextlib.contextmanager
    def watch(self, pid: int) -> Iterator[Family]:
        """Sample the memory of a process and its children while the block runs; give those
        that were seen."""
        done, family = threading.Event(), Family()

        started = time.monotonic()

        def sample() -> None:
            while True:
                found = family.look(pid)
                if found is not None:
                    self.anonymous_bytes = found
                    self.peak_anonymous_bytes = max(found, self.peak_anonymous_bytes or 0)
                age = time.monotonic() - started
                if done.wait(min(max(_SHORTEST, age / 50), _LONGEST)):
                    return

        thread = threading.Thread(target=sample, daemon=True)
        thread.start()
        try:
            yield family
        finally:
            done.set()
            thread.join()
            self.anonymous_bytes = 0


class Family:
    """A process and its descendants, as far as they were seen: number and start time."""

    def __init__(self) -> None:
        self._seen: dict[int, str] = {}

    def look(self, pid: int) -> int | None:
        """Return the anonymous resident bytes of a process and its descendants, None if it has
        ended or the system does not say. A child that has forked and not yet started a program of
        its own shares its parent's pages: it is not counted."""
        total: int | None = None
        todo = [(pid, b"")]
        while todo:
            number, parent = todo.pop()
            folder = Path(f"/proc/{number}")
            try:
                found = re.search(r"RssAnon:\s+(\d+) kB", (folder / "status").read_text("ascii"))
                words = (folder / "cmdline").read_bytes()
                for task in (folder / "task").iterdir():
                    children = (task / "children").read_text("ascii").split()
                    todo += [(int(child), words) for child in children]
                if number not in self._seen:
                    self._seen[number] = _started(number)
            except (OSError, ValueError):
                continue  # it ended meanwhile, or this is not Linux
            if found and words != parent:
                total = (total or 0) + int(found[1]) * 1024
        return total

    def kill(self) -> None:
        """Kill those that are still there, in whatever process group or session."""
        for number, started in self._seen.items():
            with contextlib.suppress(OSError, ValueError):
                if _started(number) == started:  # the number has not been used again
                    os.kill(number, signal.SIGKILL)


def _started(number: int) -> str:
    """Return when a process started, in the kernel's ticks (proc(5), stat, field 22)."""
    text = Path(f"/proc/{number}/stat").read_text("utf-8", "replace")
    return text.rpartition(")")[2].split()[19]
