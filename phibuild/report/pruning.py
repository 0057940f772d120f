"""Removing old runs: never the latest of a recipe, never one that is being written.

A run goes in one step, that in which its report.json does: what a kill leaves of its folder then is
what a killed build leaves, and is swept as that is.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from phibuild.errors import Problem, StoreError
from phibuild.report.inventory import Links, Run, find_runs
from phibuild.report.run_folders import MARK, latest_run, sweep_run
from phibuild.system.locks import held_if_free


@dataclass(frozen=True)
class Pruned:
    """Runs that were removed, or would be, each with the bytes that this freed; those that are
    `left`, and of those `busy` ones that should have gone, but somebody was at work in them."""

    removed: tuple[Run, ...]
    left: tuple[Run, ...]
    busy: tuple[Run, ...] = ()

    @property
    def freed_bytes(self) -> int:
        return sum(run.alone_bytes for run in self.removed)


def choose(
    runs: Sequence[Run], *, now: float, older_than: float | None, keep: int | None
) -> list[Run]:
    """Return which of the runs, newest first, are to go: what killed builds left, those written and
    last confirmed more than `older_than` seconds before `now`, and all but the newest `keep` of a
    recipe. The latest counts among these, and stays."""
    chosen = []
    newer: dict[str, int] = {}
    for run in runs:
        written = run.status not in ("running", "killed")
        before = newer.get(run.recipe, 0)
        newer[run.recipe] = before + written
        old = older_than is not None and now - run.last_time > older_than
        beyond = keep is not None and before >= keep
        if run.status == "killed" or (written and not run.latest and (old or beyond)):
            chosen.append(run)
    return chosen[::-1]  # the oldest goes first


def plan_prune(
    output: Path,
    recipe: str | None,
    *,
    now: float,
    older_than: float | None,
    keep: int | None,
) -> Pruned:
    """Return what `prune` would remove; changes nothing."""
    runs, links = find_runs(output, recipe), Links()
    chosen = choose(runs, now=now, older_than=older_than, keep=keep)
    removed = tuple(replace(run, alone_bytes=links.take(run.folder)) for run in chosen)
    return Pruned(removed, tuple(run for run in runs if run not in chosen))


def prune(
    output: Path,
    recipe: str | None,
    *,
    now: float,
    older_than: float | None,
    keep: int | None,
) -> Pruned:
    """Remove runs as `choose` says. Raises StoreError for one that cannot be removed."""
    wanted = plan_prune(output, recipe, now=now, older_than=older_than, keep=keep)
    removed, busy = [], []
    for run in wanted.removed:
        with _free(run) as free:
            if not free:
                busy.append(run)
                continue
            freed = Links().take(run.folder)
            try:
                (run.folder / "report.json").unlink(missing_ok=True)
                sweep_run(run.folder)
            except OSError as error:
                problem = f"a run cannot be removed: {error.strerror}"
                remedy = "see to the rights of the folder, and prune again"
                raise StoreError(Problem(problem, str(error.filename), remedy)) from error
            removed.append(replace(run, alone_bytes=freed))
    return Pruned(tuple(removed), (*wanted.left, *busy), tuple(busy))


@contextlib.contextmanager
def _free(run: Run) -> Iterator[bool]:
    """Hold the lock of a run's mark; gives False if somebody is at work there, it is gone, or it is
    the latest after all."""
    with contextlib.ExitStack() as stack:
        mark = run.folder / MARK
        try:
            fd = stack.enter_context(held_if_free(mark))
        except FileNotFoundError:
            fd = None
        except OSError as error:
            problem = f"a run cannot be removed: {error.strerror or os.strerror(error.errno or 0)}"
            raise StoreError(Problem(problem, str(run.folder))) from error
        if fd is not None and latest_run(run.folder.parent) == run.folder.resolve():
            mark.unlink()
            fd = None
        yield fd is not None
