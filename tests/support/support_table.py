"""`pytest tests/slow/test_contract.py --support FILE`: what can be built of each shape of Phi, and
how it is judged, as a page: what a test built, or what a plan refused there, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from tabulate import tabulate

from phibuild.backends.registry import SHIPPED

PROPERTY = "support"
PRECISIONS = ("int4", "int8", "fp16", "fp32")
MODELS = {
    "phi3": "Phi-3, Phi-3.5",
    "phi4mini": "Phi-4-mini",
    "phi4": "Phi-4, Phi-3-medium",
}
"""What of Phi has such a shape: longrope alone; partial rotation, keys that heads share and a tied
embedding; keys that heads share."""
_INTRODUCTION = """\
# What is supported

Each square was built, judged and gated by the tests on a random checkpoint of the shape, or refused
by the plan with the reason below the table. Made by the suite itself:

    pytest tests/slow/test_contract.py --support docs/support.md

*native*: judged in the runtime that it is made for, as it is made to be run, in float32 where that
would round more ([judging.md](judging.md#what-misleads)). *by ...*: judged in another form, on this
machine's CPU; the device's own accelerator did not run it. What every variant loses:
[variants.md](variants.md).
"""

Row = Mapping[str, Any]


def add_option(parser: pytest.Parser) -> None:
    parser.addoption("--support", metavar="FILE", help="write what is supported, as a page")


def square(cell: Row) -> str:
    """Return what a table says of a cell of report.json. Raises AssertionError for one that was
    neither built nor refused."""
    if cell["status"] == "skipped":
        return f"refused: {cell['reason']}"
    assert cell["status"] in ("built", "cached"), cell
    judged = cell["judged"]
    assert judged["how"] != "no", cell
    return "native" if judged["how"] == "native" else f"by {judged['note']}"


def write_table(reporter: pytest.TerminalReporter, path: Path) -> bool:
    """Write the page, if every shape of every backend was built and passed. Otherwise leave the
    file as it is, say what is missing and return False."""
    rows = [
        json.loads(value)
        for report in reporter.stats.get("passed", [])
        for name, value in getattr(report, "user_properties", ())
        if name == PROPERTY
    ]
    there = {(row["shape"], row["backend"]) for row in rows}
    missing = [
        f"{backend} of {shape}"
        for backend in SHIPPED
        for shape in MODELS
        if (shape, backend) not in there
    ]
    if missing:
        reporter.write_line(
            f"ERROR: {path} is left as it was: not built, or not passed: {', '.join(missing)}; "
            "it takes all of tests/slow/test_contract.py",
            red=True,
        )
        return False
    path.write_text(f"{_INTRODUCTION}\n{_table(rows)}", encoding="utf-8")
    reporter.write_line(f"{len(rows)} squares: {path}")
    return True


def _table(rows: Iterable[Row]) -> str:
    """Return the table and the reasons that its squares name by number."""
    lines: dict[tuple[str, str, str], dict[str, str]] = {}
    reasons: dict[str, int] = {}
    for row in sorted(
        rows, key=lambda row: (list(MODELS).index(row["shape"]), SHIPPED.index(row["backend"]))
    ):
        text: str = row["square"]
        if text.startswith("refused: "):
            number = reasons.setdefault(text.removeprefix("refused: "), len(reasons) + 1)
            text = f"refused ({number})"
        key = (MODELS[row["shape"]], row["backend"], row["target"])
        lines.setdefault(key, {})[row["precision"]] = text
    table = tabulate(
        [[*key, *(squares.get(one, "") for one in PRECISIONS)] for key, squares in lines.items()],
        headers=("model", "backend", "for", *PRECISIONS),
        tablefmt="github",
        disable_numparse=True,
    )
    notes = "".join(f"{number}. {reason}\n" for reason, number in reasons.items())
    return f"{table}\n\n## Why refused\n{notes}"
