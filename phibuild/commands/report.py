"""`phibuild report`: a run's report again."""

from __future__ import annotations

import argparse

from phibuild.commands.build import exit_code, show
from phibuild.report.runs import find_run, read_report
from phibuild.schema import document_text
from phibuild.system.places import user_path


def run(arguments: argparse.Namespace) -> int:
    """Show the report of a run; the exit code is the run's."""
    report = read_report(find_run(user_path(arguments.output, "--output"), arguments.what))
    if arguments.json:
        print(document_text(report))
    else:
        show(report)
    return exit_code(report)
