"""`pytest --correctness FILE`: what Transformers or the vendors make of awkward sources, and what
phibuild does, as a table in a page: the tests that check a case are marked with it.

    @pytest.mark.case("weights", "NaN or infinity", "loaded as it is", "refused, naming the tensor")

A test that does not run the others' programs says None of them; one that does says it then:

    @pytest.mark.outside("weights", "NaN or infinity", "loaded as it is")

`{name}` in a text is that parameter of the test; "-" stands where nobody outside has a say. The
table stands between two marks in the page; what is around it stays.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tabulate import tabulate

BEGIN, END = "<!-- cases: made by the tests -->", "<!-- end of the cases -->"
HEADERS = ("part", "case", "Transformers, vendor, runtime", "phibuild")
_PROPERTY = "case"

Cells = dict[int, str]
"""Texts by column."""


def add_option(parser: pytest.Parser) -> None:
    parser.addoption("--correctness", metavar="FILE", help="write the cases into this page")


def note_cases(item: pytest.Item) -> None:
    """Put the cases that a test is marked with into its report."""
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    for kind in ("case", "outside"):
        for mark in item.iter_markers(kind):
            row = [text and text.format_map(parameters) for text in mark.args]
            row += [None] * (len(HEADERS) - len(row))
            item.user_properties.append((_PROPERTY, json.dumps(row)))


def write_cases(terminalreporter: pytest.TerminalReporter, path: Path) -> None:
    """Put the cases of the tests that passed into a page, without those of which a test failed or
    was not run to its end; those of tests that were not asked for stay."""
    page = path.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    old, after = rest.split(END)
    rows = {(row[0], row[1]): dict(enumerate(row)) for row in _rows(old)}
    for key, cells in _noted(terminalreporter, "passed"):
        rows.setdefault(key, {}).update(cells)
    for outcome in ("failed", "error", "skipped"):
        for key, _ in _noted(terminalreporter, outcome):
            rows.pop(key, None)
    whole = [key for key in sorted(rows) if len(rows[key]) == len(HEADERS)]
    table = tabulate(
        [[rows[key][column] for column in range(len(HEADERS))] for key in whole],
        HEADERS,
        tablefmt="github",
        disable_numparse=True,
    )
    path.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")
    terminalreporter.write_line(f"{len(whole)} cases: {path}")
    for key in sorted(rows.keys() - set(whole)):
        terminalreporter.write_line(f"left out, one side is not known: {': '.join(key)}")


def _noted(reporter: pytest.TerminalReporter, outcome: str) -> list[tuple[tuple[str, str], Cells]]:
    rows = [
        json.loads(value)
        for report in reporter.stats.get(outcome, [])
        for name, value in getattr(report, "user_properties", ())
        if name == _PROPERTY
    ]
    return [
        ((row[0], row[1]), {place: text for place, text in enumerate(row) if text is not None})
        for row in rows
    ]


def _rows(table: str) -> list[list[str]]:
    lines = [line for line in table.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
