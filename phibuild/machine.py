"""What this machine lets phibuild use: cores and memory, within the limits of its container."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil

_CGROUPS = Path("/sys/fs/cgroup")
_MARGIN = 1 << 30
"""Bytes left to the system and to phibuild itself."""


def cores() -> int:
    """Return the cores that this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


def total_memory() -> int:
    """Return the bytes of memory of this machine or, if that is less, of its control group."""
    return min([psutil.virtual_memory().total, *(limit for limit, _ in _group_memory())])


def usable_memory() -> int:
    """Return the most that steps could ever take together, in bytes: all but a margin."""
    return max(total_memory() - _MARGIN, _MARGIN)


def available_memory() -> int:
    """Return the bytes that can be taken now without swapping, less the margin; at least 0."""
    free = [psutil.virtual_memory().available]
    free += [limit - used for limit, used in _group_memory()]
    return max(min(free) - _MARGIN, 0)


def _group_memory() -> Iterator[tuple[int, int]]:
    """Yield limit and use of this process's control group and those above it (cgroups, version 2:
    memory.max, and memory.current less what can be dropped of it)."""
    try:
        line = Path("/proc/self/cgroup").read_text("ascii").splitlines()[-1]
    except (OSError, IndexError, UnicodeDecodeError):
        return  # not Linux
    if not line.startswith("0::/"):
        return
    folder = _CGROUPS / line.removeprefix("0::/")
    while folder != _CGROUPS.parent:
        try:
            limit = (folder / "memory.max").read_text("ascii").strip()
            if limit != "max":
                used = int((folder / "memory.current").read_text("ascii"))
                lines = (folder / "memory.stat").read_text("ascii").splitlines()
                droppable = dict(line.split() for line in lines).get("inactive_file", 0)
                yield int(limit), used - int(droppable)
        except (OSError, ValueError):
            pass  # the root has no limit
        folder = folder.parent
