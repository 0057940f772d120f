"""Writing report.html, and showing it."""

from __future__ import annotations

import webbrowser
from pathlib import Path

from phibuild.errors import ConfigError, Problem
from phibuild.report.documents import Report
from phibuild.report.html.page import report_html
from phibuild.system.files import write_atomically


def write_page(report: Report, run: Path, path: Path) -> None:
    """Write the page of a run's report to a file. Raises ConfigError if it cannot be written."""
    try:
        write_atomically(path, report_html(report, run))
    except OSError as error:
        raise ConfigError(
            Problem(f"cannot be written: {error.strerror}", str(path), "choose another file")
        ) from error


def open_page(path: Path) -> None:
    """Open a page in the user's browser. Raises ConfigError if there is none."""
    address = path.resolve().as_uri()
    if not webbrowser.open(address):
        raise ConfigError(
            Problem("no browser was found here", "command line: --open",
                    f"open {address} elsewhere, or set BROWSER")
        )  # fmt: skip
