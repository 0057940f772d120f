"""What this machine lets phibuild use: cores and memory, within the limits of its container."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

_GROUPS = Path("/sys/fs/cgroup")
_MARGIN = 1 << 30
"""Bytes left to the system and to phibuild itself."""


def cores() -> int:
    """Return the cores that this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


def machine_name() -> str:
    """Return what tells machines of other speed from this one: its processor and its cores."""
    name = platform.processor() or platform.machine()
    with suppress(OSError):  # not Linux
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model", "cpu model"):
                name = value.strip()
                break
    return f"{name}, {os.cpu_count()} cores"


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
    """Yield limit and use in bytes, less what can be dropped, of this process's control group and
    of those above it: memory.max and memory.current of version 2 of the interface, and their
    counterparts of version 1 (cgroups(7))."""
    try:
        lines = Path("/proc/self/cgroup").read_text("ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return  # not Linux
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers == "":
            names = ("memory.max", "memory.current", "inactive_file")
            yield from _limits(_GROUPS, name, names)
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            yield from _limits(_GROUPS / "memory", name, names)


def _limits(root: Path, name: str, files: tuple[str, str, str]) -> Iterator[tuple[int, int]]:
    folder = root / name.lstrip("/")
    while True:
        with suppress(OSError, ValueError):  # no limit ("max"), or a root, which has no such files
            limit = int((folder / files[0]).read_text("ascii"))
            used = int((folder / files[1]).read_text("ascii"))
            lines = (folder / "memory.stat").read_text("ascii").splitlines()
            droppable = int(dict(line.split() for line in lines).get(files[2], 0))
            yield limit, used - droppable
        if folder == root:
            return
        folder = folder.parent
