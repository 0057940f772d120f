"""`phibuild report`: a run's report again, its page, its plots."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from phibuild.commands.build import exit_code
from phibuild.errors import ConfigError, Problem
from phibuild.report.before import report_before
from phibuild.report.csv_rows import report_csv
from phibuild.report.documents import Report
from phibuild.report.junit import report_junit
from phibuild.report.markdown import report_page
from phibuild.report.runs import find_report, is_time, read_report
from phibuild.report.sensitivity import sensitivity_lines
from phibuild.report.terminal.page import show_report
from phibuild.schema import document_text
from phibuild.system.files import write_atomically
from phibuild.system.places import user_path

_PRINTED = ("json", "sensitivity", "markdown", "csv")


def run(arguments: argparse.Namespace) -> int:
    """Show the report of a run, or write it; the exit code is the run's."""
    printed = [f"--{name}" for name in _PRINTED if getattr(arguments, name)]
    printed += ["--junit -"] if arguments.junit == "-" else []
    if len(printed) > 1:
        raise ConfigError(
            Problem(f"{' and '.join(printed)} all print", "command line", "ask for one of them")
        )
    path = find_report(user_path(arguments.output, "--output"), arguments.what)
    report = read_report(path)
    if arguments.junit is not None:
        _junit(report, path, arguments.junit)
    written = arguments.html or arguments.plots or arguments.open
    if written:
        _write(report, path.parent, arguments)
    if arguments.json:
        print(document_text(report))
    elif arguments.sensitivity:
        print("\n".join(sensitivity_lines(report)).rstrip())
    elif arguments.markdown:
        print(report_page(report, report_before(path.parent)), end="")
    elif arguments.csv:
        print(report_csv(report), end="")
    elif arguments.junit is None and not written:
        show_report(report, wide=arguments.wide, colour=not arguments.no_color)
    return exit_code(report)


def _junit(report: Report, path: Path, where: str) -> None:
    text = report_junit(report, _started(path))
    if where == "-":
        print(text, end="")
    else:
        write_atomically(user_path(where, "--junit"), text)


def _started(path: Path) -> str:
    """Return when a run began, by its folder's name; of a report that lies elsewhere, when it was
    written."""
    name = path.parent.resolve().name
    if is_time(name):
        day, _, clock = name[:19].partition("_")
        return f"{day}T{clock.replace('-', ':')}"
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(path.stat().st_mtime))


def _write(report: Report, folder: Path, arguments: argparse.Namespace) -> None:
    """Write and open what was asked for; what was written is named on standard output."""
    if arguments.plots:
        from phibuild.report.html.plots import write_plots

        for path in write_plots(report, user_path(arguments.plots, "--plots")):
            print(path)
    if arguments.html or arguments.open:
        from phibuild.report.html.files import open_page, write_page
        from phibuild.report.html.page import PAGE

        path = user_path(arguments.html, "--html") if arguments.html else folder / PAGE
        # A run's own page stands already, unless an older phibuild made the run.
        if arguments.html or not path.exists():
            write_page(report, folder, path)
        print(path)
        if arguments.open:
            open_page(path)
