"""Which runs there are, what became of each, and what disk space each alone holds."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from phibuild.errors import ConfigError, Problem, suggest
from phibuild.report.documents import Totals
from phibuild.report.run_folders import (
    MARK,
    RUN_NAME,
    latest_run,
    read_confirmation,
    run_order,
)
from phibuild.schema import Document
from phibuild.system.locks import is_held

RunStatus = Literal["built", "gate failed", "failed", "interrupted", "running", "killed", "damaged"]


class _Summary(Document):
    """What of report.json a list shows."""

    command: str
    totals: Totals


@dataclass(frozen=True)
class Run:
    """A run below `outputs`. `started` is its time by its name, `confirmed` when a build last found
    nothing new, both in seconds since 1970; `alone_bytes` is what removing it would free; `command`
    and `cells` are None where there is no report, or a damaged one."""

    recipe: str
    folder: Path
    started: float
    confirmed: float | None
    confirmations: int
    status: RunStatus
    cells: int | None
    alone_bytes: int
    command: str | None
    latest: bool

    @property
    def is_over(self) -> bool:
        """Whether its build has ended, with a report or without."""
        return self.status != "running"

    @property
    def last_time(self) -> float:
        return max(self.started, self.confirmed or 0.0)


class Links:
    """Hard links counted: what becomes free as folders are removed one after the other."""

    def __init__(self) -> None:
        self._left: dict[tuple[int, int], int] = {}

    def take(self, folder: Path) -> int:
        """Return the bytes that removing a folder frees once all that were taken before it are
        gone: of the files whose last link lies in it."""
        freed = 0
        for path, _, names in os.walk(folder):
            for name in names:
                try:
                    status = os.lstat(os.path.join(path, name))
                except OSError:
                    continue  # it went meanwhile
                file = status.st_dev, status.st_ino
                self._left[file] = self._left.get(file, status.st_nlink) - 1
                freed += 0 if self._left[file] else status.st_size
        return freed


def find_runs(output: Path, recipe: str | None = None) -> list[Run]:
    """Return the runs below `output`, of one recipe or of all, newest first. Raises ConfigError for
    a recipe that has none."""
    bases = sorted(path for path in output.iterdir() if path.is_dir()) if output.is_dir() else []
    names = [base.name for base in bases]
    if recipe is not None and recipe not in names:
        problem = f"no runs of a recipe {recipe!r}"
        raise ConfigError(Problem(problem, str(output), suggest(recipe, names) or None))
    runs = [run for base in bases if recipe in (None, base.name) for run in _runs_of(base)]
    return sorted(runs, key=lambda run: run_order(run.folder), reverse=True)


def _runs_of(base: Path) -> Iterable[Run]:
    folders = [
        path
        for path in base.iterdir()
        if not path.is_symlink()
        and path.is_dir()
        and ((path / "report.json").is_file() or RUN_NAME.fullmatch(path.name))
    ]
    folders = [
        path for path in folders if (path / MARK).exists() or (path / "report.json").exists()
    ]
    latest = latest_run(base)
    if latest is None:  # the link is gone: the newest is in its place
        written = [path for path in folders if (path / "report.json").is_file()]
        latest = max(written, key=run_order, default=None)
    return [_run(base.name, path, is_latest=path.resolve() == latest) for path in folders]


def _run(recipe: str, folder: Path, *, is_latest: bool) -> Run:
    summary, confirmation = None, read_confirmation(folder)
    status: RunStatus = "damaged"
    if not (folder / "report.json").is_file():
        status = "running" if is_held(folder / MARK) else "killed"
    else:
        try:
            text = (folder / "report.json").read_text(encoding="utf-8")
            summary = _Summary.read(json.loads(text))
            status = _status(summary.totals)
        except (OSError, ValueError, RecursionError):
            pass
    totals = summary.totals if summary else None
    return Run(
        recipe=recipe,
        folder=folder,
        started=run_order(folder)[0],
        confirmed=confirmation.time if confirmation else None,
        confirmations=confirmation.confirmations if confirmation else 0,
        status=status,
        cells=totals.built + totals.cached + totals.skipped + totals.failed if totals else None,
        alone_bytes=Links().take(folder),
        command=summary.command if summary else None,
        latest=is_latest,
    )


def _status(totals: Totals) -> RunStatus:
    if totals.interrupted:
        return "interrupted"
    if totals.failed:
        return "failed"
    return "gate failed" if totals.gates_failed else "built"
