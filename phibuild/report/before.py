"""The run before a run: what a report says has changed."""

from __future__ import annotations

import contextlib
from pathlib import Path

from phibuild.errors import ConfigError
from phibuild.report.diff.making import NamedReport
from phibuild.report.runs import read_report, run_before


def report_before(folder: Path) -> NamedReport | None:
    """Return the report of the run of the same recipe before the one in `folder`, if there is one
    that can be read: a damaged one keeps no other from being written."""
    before = run_before(folder)
    if before is None:
        return None
    with contextlib.suppress(ConfigError):
        return NamedReport(before.name, read_report(before))
    return None
