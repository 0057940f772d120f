"""`phibuild build`: plan, execute, report."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable
from pathlib import Path

from phibuild.commands.common import Prepared, compose, prepare
from phibuild.config.compose import Composition
from phibuild.errors import EXIT_CELL_FAILED, EXIT_GATE_FAILED, EXIT_INTERRUPTED, EXIT_OK
from phibuild.execute.context import Listener
from phibuild.execute.display.choose import make_progress
from phibuild.execute.forecast import forecast
from phibuild.execute.local.executor import Execution, run_plan
from phibuild.report.before import report_before
from phibuild.report.confirming import confirm_latest
from phibuild.report.data import make_report
from phibuild.report.documents import Report
from phibuild.report.github import report_to_actions
from phibuild.report.markdown import report_page
from phibuild.report.run_folders import discard_run
from phibuild.report.table import headline
from phibuild.report.terminal.page import show_report
from phibuild.report.writing import check_output, new_run, write_run
from phibuild.schema import document_text
from phibuild.store.uses import in_use
from phibuild.streams import silence
from phibuild.system.places import user_path


def run(arguments: argparse.Namespace) -> int:
    """Build what the command line asks for; return the exit code of the contract."""
    started = time.monotonic()
    composition = compose(arguments)
    if arguments.cfg:
        print(composition.yaml(), end="")
        return EXIT_OK
    output = user_path(arguments.output, "--output").resolve()
    check_output(output)
    execute = _executor(composition)
    with contextlib.ExitStack() as stack:
        with contextlib.ExitStack() as planning:
            prepared = prepare(arguments, composition, planning)
            folder = stack.enter_context(new_run(output, composition.name))
            keys = prepared.plan.store_keys
            using = stack.enter_context(in_use(prepared.store, folder, keys))
        expected = forecast(prepared.plan, prepared.executor, prepared.store)
        look = {"quiet": arguments.quiet, "live": not arguments.json}
        with make_progress(expected, **look, colour=not arguments.no_color) as progress:
            execution = execute(prepared, folder / "logs", progress)
        report = make_report(
            prepared.plan,
            execution,
            prepared.store,
            recipe=composition.name,
            configuration=composition.yaml(),
            command=arguments.command,
            seconds=time.monotonic() - started,
        )
        confirmed = confirm_latest(folder.parent, report, prepared.store, thorough=arguments.verify)
        if confirmed:
            using.hand_over(confirmed)
            discard_run(folder)
        else:
            write_run(folder, prepared.plan, execution.results, prepared.store, report)
    folder = confirmed or folder
    try:
        if arguments.json:
            print(document_text(report))
        elif arguments.quiet:
            print(f"{headline(report)}; report: {_shown(folder)}/report.html")
        else:
            print()
            show_report(report, wide=arguments.wide, colour=not arguments.no_color)
            if confirmed:
                print(f"nothing new: the run of {confirmed.name} holds, and no other was written")
            print(f"report: {_shown(folder)}/report.html")
        report_to_actions(
            report,
            lambda limit: report_page(report, report_before(folder), limit=limit),
            quiet=arguments.json,
        )
        sys.stdout.flush()
    except BrokenPipeError:
        silence(sys.stdout)
    return exit_code(report)


def _executor(composition: Composition) -> Callable[[Prepared, Path, Listener], Execution]:
    """Return what runs a plan, once it is known to work here. Raises ConfigError if not."""
    recipe = composition.recipes[0]
    settings = recipe.config.executor
    if settings.kind == "local":
        return lambda prepared, logs, listener: run_plan(
            prepared.plan, prepared.store, settings, logs, listener
        )
    from phibuild.execute.slurm import executor, submit

    if not composition.problems:  # else the plan tells of them all
        submit.check_cluster(settings, recipe.where)
    return lambda prepared, logs, listener: executor.run_plan(
        prepared.plan, prepared.store, settings, logs, listener
    )


def exit_code(report: Report) -> int:
    """Return the exit code that a report means."""
    if report.totals.interrupted:
        return EXIT_INTERRUPTED
    if report.totals.failed:
        return EXIT_CELL_FAILED
    return EXIT_GATE_FAILED if report.totals.gates_failed else EXIT_OK


def _shown(folder: Path) -> str:
    try:
        return str(folder.relative_to(Path.cwd()))
    except ValueError:
        return str(folder)
