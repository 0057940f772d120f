"""Processes by their numbers, as /proc shows them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path


def is_alive(pid: int) -> bool:
    """Return whether a process exists and is no zombie."""
    try:
        return _status(pid)[0] not in ("Z", "X")
    except OSError:
        return False


def _status(pid: int) -> list[str]:
    """Return the state, the parent and so on, after the command of /proc/PID/stat (proc(5))."""
    text = Path(f"/proc/{pid}/stat").read_text("ascii", "replace")
    return text.rsplit(")", 1)[1].split()


def parent(pid: int) -> int | None:
    """Return the process that a process is a child of."""
    try:
        return int(_status(pid)[1])
    except OSError:
        return None


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return f"{pid} (gone)"


def kill_worker(pids: Sequence[int], pick: Callable[[Sequence[int]], int]) -> int | None:
    """Kill -9 one of these processes; return it if it was alive."""
    alive = [pid for pid in pids if is_alive(pid)]
    if not alive:
        return None
    pid = pick(alive)
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return None
    return pid
