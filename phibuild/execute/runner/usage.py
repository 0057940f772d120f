"""What a runner takes while it works: anonymous memory, sampled from outside; CPU seconds.

Anonymous memory is what a process cannot give back; pages of mapped files can be dropped, and
count as resident all the same. The kernel keeps no peak of it (proc(5), `RssAnon` of
/proc/PID/status), so it is looked at several times a second. Linux only; elsewhere it is not known.
"""

from __future__ import annotations

import contextlib
import re
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
    anonymous memory of a runner with its children, in bytes (None: not known), what it takes now,
    and how many of the CPU seconds went into imports and the loading of libraries."""

    cpu_seconds: float = 0.0
    peak_anonymous_bytes: int | None = None
    anonymous_bytes: int = 0
    loading_seconds: float = 0.0
    seconds: float = 0.0

    @contextlib.contextmanager
    def watch(self, pid: int) -> Iterator[None]:
        """Sample the memory of a process and its children while the block runs."""
        done = threading.Event()
        started = time.monotonic()

        def sample() -> None:
            while True:
                found = anonymous_bytes(pid)
                if found is not None:
                    self.anonymous_bytes = found
                    self.peak_anonymous_bytes = max(found, self.peak_anonymous_bytes or 0)
                age = time.monotonic() - started
                if done.wait(min(max(_SHORTEST, age / 50), _LONGEST)):
                    return

        thread = threading.Thread(target=sample, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            self.seconds += time.monotonic() - started
            self.anonymous_bytes = 0


def anonymous_bytes(pid: int) -> int | None:
    """Return the anonymous resident bytes of a process and its descendants, None if it has ended
    or the system does not say. A child that has forked and not yet started a program of its own
    shares its parent's pages: it is not counted."""
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
        except (OSError, ValueError):
            continue  # it ended meanwhile, or this is not Linux
        if found and words != parent:
            total = (total or 0) + int(found[1]) * 1024
    return total
