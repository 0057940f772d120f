"""`phibuild diff`: what is different between two runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from phibuild.errors import EXIT_GATE_FAILED, EXIT_OK, ConfigError, Problem
from phibuild.report.diff.conditions import read_conditions
from phibuild.report.diff.making import NamedReport, make_difference
from phibuild.report.diff.markdown import difference_page
from phibuild.report.diff.text import difference_lines
from phibuild.report.github import difference_to_actions
from phibuild.report.runs import find_report, is_time, read_report
from phibuild.schema import document_text
from phibuild.system.places import user_path


def run(arguments: argparse.Namespace) -> int:
    """Show what is different in the second run; exit code 3 where --fail-if applies to a cell."""
    conditions = read_conditions(arguments.fail_if or ())
    if arguments.json and arguments.markdown:
        raise ConfigError(
            Problem("--json and --markdown both print", "command line", "leave one of the two out")
        )
    output = user_path(arguments.output, "--output")
    a, b = (_read(output, name) for name in (arguments.a, arguments.b))
    difference = make_difference(a, b)
    results = [condition.failures(difference) for condition in conditions]
    difference = difference.model_copy(update={"conditions": results})
    if arguments.json:
        print(document_text(difference))
    elif arguments.markdown:
        print(difference_page(difference), end="")
    else:
        print("\n".join(difference_lines(difference, everything=arguments.all)))
    difference_to_actions(difference, quiet=arguments.json or arguments.markdown)
    failed = any(result.cells for result in results)
    return EXIT_GATE_FAILED if failed else EXIT_OK


def _read(output: Path, name: str) -> NamedReport:
    path = find_report(output, name)
    return NamedReport(_called(path, name), read_report(path))


def _called(path: Path, name: str) -> str:
    """Return what a run is called: recipe and time, or as it was given."""
    folder = path.parent.resolve()
    return f"{folder.parent.name}/{folder.name}" if is_time(folder.name) else name
