"""`phibuild runs`: which runs there are, and removing old ones."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from tabulate import tabulate

from phibuild.commands.answers import RunList, RunRemoval, RunRow
from phibuild.errors import EXIT_OK, ConfigError, Problem
from phibuild.report.inventory import Run, find_runs
from phibuild.report.pruning import Pruned, plan_prune, prune
from phibuild.schema import document_text
from phibuild.system.places import user_path
from phibuild.units import format_age, format_decimal, parse_age

_OLD = "30d"
_COMMAND_LETTERS = 60


def run(arguments: argparse.Namespace) -> int:
    """List runs, or remove those that are old."""
    output = user_path(arguments.output, "--output").resolve()
    if arguments.action == "list":
        for flag, given in (("--older-than", arguments.older_than), ("--keep", arguments.keep)):
            if given is not None:
                remedy = "'phibuild runs prune' takes it"
                raise ConfigError(Problem(f"list takes no {flag}", "command line", remedy))
        runs = find_runs(output, arguments.what)
        if arguments.json:
            print(document_text(RunList([_answer(run) for run in runs])))
        else:
            print(_table(runs) if runs else f"no runs in {output}")
        return EXIT_OK
    older_than = arguments.older_than
    if older_than is None and arguments.keep is None:
        older_than = parse_age(_OLD)
    sweep = plan_prune if arguments.dry_run else prune
    now = time.time()
    pruned = sweep(output, arguments.what, now=now, older_than=older_than, keep=arguments.keep)
    if arguments.json:
        print(
            document_text(
                RunRemoval(
                    removed=[_answer(run) for run in pruned.removed],
                    freed_bytes=pruned.freed_bytes,
                    left=len(pruned.left),
                    dry_run=arguments.dry_run,
                )
            )
        )
    else:
        _tell(pruned, dry_run=arguments.dry_run)
    for busy in pruned.busy:
        print(f"note: {busy.folder} stays: somebody is at work there", file=sys.stderr)
    return EXIT_OK


def _answer(run: Run) -> RunRow:
    return RunRow(
        recipe=run.recipe,
        folder=str(run.folder),
        started=run.started,
        confirmed=run.confirmed,
        confirmations=run.confirmations,
        status=run.status,
        cells=run.cells,
        alone_bytes=run.alone_bytes,
        command=run.command,
        latest=run.latest,
    )


def _table(runs: Sequence[Run]) -> str:
    now = time.time()
    rows = [
        (
            run.recipe,
            run.folder.name,
            "-" if run.cells is None else f"{run.cells:,}",
            run.status + (", latest" if run.latest else ""),
            f"{format_age(now - run.confirmed)} ago" if run.confirmed else "-",
            format_decimal(run.alone_bytes),
            _shortened(run.command or "-"),
        )
        for run in runs
    ]
    headers = ("recipe", "run", "cells", "status", "confirmed", "would free", "command")
    align = ("left", "left", "right", "left", "right", "right", "left")
    return tabulate(rows, headers, colalign=align, disable_numparse=True)


def _shortened(command: str) -> str:
    text = " ".join(command.split())
    return text if len(text) <= _COMMAND_LETTERS else text[: _COMMAND_LETTERS - 3] + "..."


def _tell(pruned: Pruned, *, dry_run: bool) -> None:
    if pruned.removed:
        print(_table(pruned.removed))
    print(
        f"{'would remove' if dry_run else 'removed'} {len(pruned.removed)} runs, "
        f"{format_decimal(pruned.freed_bytes)} freed on disk; {len(pruned.left)} left"
    )
    if pruned.removed:
        print("what they shared with the store or with other runs stays: phibuild store gc")
