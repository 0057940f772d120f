"""`pytest --faults-table FILE`: the faults that the tests tried and survived, as a page.

`--kills N` has tests/slow/test_faults_kill.py try more than a daily run has time for.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from tabulate import tabulate

_INTRODUCTION = """\
# Faults

What was done to real builds, and how often phibuild came through. Made by the suite itself:

    pytest tests/slow/test_faults*.py --kills 15 --faults-table docs/faults.md

After each fault the suite checks that

- every artifact in the store is whole: each file is compared with the manifest's sha256, in full;
- artifacts that were finished before the fault are there, with the same digest;
- every report is whole, the artifacts that it names are there, and `latest` points at one;
- no process is left within 10 seconds, children of workers included;
- unless phibuild itself was killed with kill -9, the report of what was done is written, if
  anything was begun and there is room for it; if not, the exit code and a message say so;
- the next run goes on where this one stopped, and sweeps what was left of it;
- its artifacts have the digests of a build that nothing disturbed.

A fault counts as survived if all of this held to the end of its test.
"""


def add_options(parser: pytest.Parser) -> None:
    parser.addoption("--faults-table", metavar="FILE", help="write the faults tried and survived")
    parser.addoption("--kills", metavar="N", type=int, default=1, help="of each of four seeds")


def write_table(terminalreporter: pytest.TerminalReporter, path: Path) -> None:
    """Write the page."""
    tried: Counter[tuple[str, str]] = Counter()
    survived: Counter[tuple[str, str]] = Counter()
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            for name, value in getattr(report, "user_properties", ()):
                if name == "fault" and report.when == "call":
                    fault, what, times = json.loads(value)
                    tried[fault, what] += times
                    survived[fault, what] += times if outcome == "passed" else 0
    skipped = [
        f"- {report.nodeid.rpartition('::')[2]}: {report.longrepr[2]}"
        for report in terminalreporter.stats.get("skipped", [])
        if isinstance(report.longrepr, tuple)
    ]
    path.write_text(faults_page(tried, survived, skipped), encoding="utf-8")
    terminalreporter.write_line(f"{survived.total()} of {tried.total()} faults survived: {path}")


def faults_page(
    tried: Counter[tuple[str, str]], survived: Counter[tuple[str, str]], skipped: list[str]
) -> str:
    """Return the page: the counts by kind of fault, then by what exactly was done."""
    kinds: dict[str, list[int]] = {}
    for fault, what in sorted(tried):
        count = kinds.setdefault(fault, [0, 0])
        count[0] += tried[fault, what]
        count[1] += survived[fault, what]
    rows = [[kind, *count] for kind, count in kinds.items()]
    rows.append(["all", tried.total(), survived.total()])
    parts = [_INTRODUCTION, _table(("fault", "tried", "survived"), rows)]
    parts.append("## One by one\n")
    details = [[*key, tried[key], survived[key]] for key in sorted(tried)]
    parts.append(_table(("fault", "what was done", "tried", "survived"), details))
    if skipped:
        parts += ["Not tried on this machine:\n", "\n".join(skipped) + "\n"]
    return "\n".join(parts)


def _table(headers: tuple[str, ...], rows: list[list[object]]) -> str:
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True) + "\n"
