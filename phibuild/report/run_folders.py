"""The folders of runs, `outputs/<recipe>/<timestamp>/`: their marks, and sweeping the dead.

A run counts as written once its report.json is there, and as gone once it is there no more. Whoever
writes one, confirms it or takes it away holds the lock of a mark in its folder for that time.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import time
from pathlib import Path

from phibuild.report.documents import Confirmation
from phibuild.system.locks import held_if_free

MARK = ".running"
"""A file in a run's folder that whoever changes it holds a lock on."""
CONFIRMED = "confirmed.json"
"""What says that a later build found nothing new."""
LATEST_LINK = ".latest-"
"""How the name of what becomes `latest` begins."""
STAMP = "%Y-%m-%d_%H-%M-%S"
"""A run's name, local time; a second one of the same second has -2 after it."""
RUN_NAME = re.compile(r"(\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d)(?:-(\d+))?")


def latest_run(base: Path) -> Path | None:
    """Return the run that `latest` of a recipe's folder means; None if there is none."""
    folder = (base / "latest").resolve()
    return folder if (folder / "report.json").is_file() else None


def read_confirmation(folder: Path) -> Confirmation | None:
    """Return what says that a run was confirmed; None if it was not, or that cannot be read."""
    try:
        return Confirmation.read(json.loads((folder / CONFIRMED).read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):
        return None


def run_order(folder: Path) -> tuple[float, int]:
    """Return when a run began, by its name: seconds since 1970, and its place among those of that
    second. A folder of another name counts by its report's time."""
    if match := RUN_NAME.fullmatch(folder.name):
        with contextlib.suppress(ValueError, OverflowError):
            return time.mktime(time.strptime(match[1], STAMP)), int(match[2] or 1)
    return (folder / "report.json").stat().st_mtime, 1


def last_time(folder: Path) -> float:
    """Return when a run was written or last confirmed, in seconds since 1970."""
    times = [(folder / "report.json").stat().st_mtime]
    with contextlib.suppress(OSError):
        times.append((folder / CONFIRMED).stat().st_mtime)
    return max(times)


def discard_run(folder: Path) -> None:
    """Remove a run that was not written, whose mark's lock is held."""
    with contextlib.suppress(OSError):  # a later build sweeps what is left
        sweep_run(folder)


def sweep_runs(base: Path) -> None:
    """Remove what killed builds have left: runs without a report, temporary files and links."""
    for path in sorted(base.iterdir()):
        if path.name.startswith(LATEST_LINK):
            path.unlink(missing_ok=True)
        elif RUN_NAME.fullmatch(path.name) and path.is_dir():
            with contextlib.suppress(OSError):  # it has files, or belongs to somebody else
                if not (path / MARK).exists():
                    path.rmdir()
                    continue
                with held_if_free(path / MARK) as fd:
                    if fd is not None:
                        sweep_run(path)


def sweep_run(folder: Path) -> None:
    """Remove a run if it has no report, and temporary files if it has one. Its mark's lock is held,
    so that no build is at work there."""
    finished = (folder / "report.json").exists()
    for child in sorted(folder.iterdir()):
        if child.name == MARK or (finished and not child.name.startswith(".")):
            continue
        if child.is_dir():
            shutil.rmtree(child)
        else:
            child.unlink()
    (folder / MARK).unlink()  # last: a sweep that is cut off can go on
    if not finished:
        folder.rmdir()
