"""The ends of the logs of cells that failed."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from phibuild.report.documents import Report, ReportCell

LINES, LONGEST = 30, 300
"""Of a log's end, and characters of a line."""
MOST = 50
"""Failures that are shown with their logs."""
_TAIL = 64 * 1024
# Control sequences of terminals (ECMA-48, 5.4), and other control characters but tabs.
_CONTROLS = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f]")


class Failure(NamedTuple):
    """Cells that failed for one reason: the first line of it, what else it says, and the end of the
    first one's log, which lies at `path` from the run's folder; none where it is not there."""

    ids: list[str]
    reason: str
    more: str
    log: str
    path: str


def failures(report: Report, folder: Path | None) -> Iterator[Failure]:
    """Yield what failed, cells with the same reason together. `folder` is the run's."""
    groups: dict[str, list[ReportCell]] = {}
    for cell in report.cells:
        if cell.status == "failed":
            groups.setdefault(cell.reason or "no reason was given", []).append(cell)
    for number, (reason, cells) in enumerate(groups.items()):
        first, _, more = reason.partition("\n")
        path = f"logs/{cells[0].id}.log"
        log = log_end(folder / path) if folder and number < MOST else ""
        yield Failure([cell.id for cell in cells], first, more, log, path if log else "")


def log_end(path: Path) -> str:
    """Return the last lines of a log as text; empty if there is none."""
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(file.tell() - _TAIL, 0))
            text = file.read().decode("utf-8", "replace")
    except (OSError, ValueError):  # a name that no file can have
        return ""
    # What a progress bar wrote over itself is its last state.
    lines = deque(line.rpartition("\r")[2] for line in text.replace("\r\n", "\n").split("\n"))
    while lines and not lines[-1].strip():
        lines.pop()
    kept = [_CONTROLS.sub("", line) for line in list(lines)[-LINES:]]
    return "\n".join(line if len(line) <= LONGEST else line[:LONGEST] + " ..." for line in kept)
