"""`pytest --correctness FILE`: what Transformers or the vendors make of awkward sources, and what
phibuild does, as a table in a page: the tests that check a case are marked with it.

    @pytest.mark.case("weights", "NaN or infinity", "loaded as it is", "refused, naming the tensor")

`{name}` in a text is that parameter of the test. What is said of others ends with ` *` where the
test does not run them, and is `-` where they have no say. The table stands between two
marks in the page; what is around it stays.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tabulate import tabulate

BEGIN, END = "<!-- cases: made by the tests -->", "<!-- end of the cases -->"
_PROPERTY = "case"


def add_option(parser: pytest.Parser) -> None:
    parser.addoption("--correctness", metavar="FILE", help="write the cases into this page")


def note_cases(item: pytest.Item) -> None:
    """Put the cases that a test is marked with into its report."""
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    for mark in item.iter_markers("case"):
        part, case, outside, phibuild = (text.format_map(parameters) for text in mark.args)
        item.user_properties.append((_PROPERTY, json.dumps([part, case, outside, phibuild])))


def write_cases(terminalreporter: pytest.TerminalReporter, path: Path) -> None:
    """Put the cases of the tests that passed into a page, without those of which a test failed or
    was not run to its end; those of tests that were not asked for stay."""
    page = path.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    old, after = rest.split(END)
    rows = {(row[0], row[1]): row for row in _rows(old)}
    rows |= _noted(terminalreporter, "passed")
    for outcome in ("failed", "error", "skipped"):
        for key in _noted(terminalreporter, outcome):
            rows.pop(key, None)
    table = tabulate(
        [rows[key] for key in sorted(rows)],
        ("part", "case", "Transformers, vendor, runtime", "phibuild"),
        tablefmt="github",
        disable_numparse=True,
    )
    path.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")
    terminalreporter.write_line(f"{len(rows)} cases: {path}")


def _noted(reporter: pytest.TerminalReporter, outcome: str) -> dict[tuple[str, str], list[str]]:
    rows = (
        [str(text) for text in json.loads(value)]
        for report in reporter.stats.get(outcome, [])
        for name, value in getattr(report, "user_properties", ())
        if name == _PROPERTY
    )
    return {(row[0], row[1]): row for row in rows}


def _rows(table: str) -> list[list[str]]:
    lines = [line for line in table.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
