"""`pytest --correctness FILE`: what Transformers or the vendors make of awkward sources, and what
phibuild does, as a table in a page: the tests that check each case record it.

The table stands between two marks in the page; what is around it stays.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from tabulate import tabulate

BEGIN, END = "<!-- cases: made by the tests -->", "<!-- end of the cases -->"
_PROPERTY = "case"


@dataclass
class Cases:
    """The cases that a test has checked; those of a test that passes come into the table."""

    record: Callable[[str, object], None]

    def add(self, part: str, case: str, outside: str, phibuild: str) -> None:
        """Note a case of a `part` of the source: what Transformers, the vendor's tool or the
        runtime makes of it, as the test has seen it, and what phibuild does."""
        self.record(_PROPERTY, json.dumps([part, case, outside, phibuild]))


@pytest.fixture
def cases(record_property: Callable[[str, object], None]) -> Cases:
    """Return where a test notes what it has checked."""
    return Cases(record_property)


def add_option(parser: pytest.Parser) -> None:
    parser.addoption("--correctness", metavar="FILE", help="write the cases into this page")


def write_cases(terminalreporter: pytest.TerminalReporter, path: Path) -> None:
    """Put the cases of the tests that passed into a page; those of tests that did not run stay."""
    page = path.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    old, after = rest.split(END)
    rows = {(row[0], row[1]): row for row in _rows(old)}
    for report in terminalreporter.stats.get("passed", []):
        for name, value in getattr(report, "user_properties", ()):
            if name == _PROPERTY and report.when == "call":
                row = [str(text) for text in json.loads(value)]
                rows[row[0], row[1]] = row
    table = tabulate(
        [rows[key] for key in sorted(rows)],
        ("part", "case", "Transformers, vendor, runtime", "phibuild"),
        tablefmt="github",
        disable_numparse=True,
    )
    path.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")
    terminalreporter.write_line(f"{len(rows)} cases: {path}")


def _rows(table: str) -> list[list[str]]:
    lines = [line for line in table.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
