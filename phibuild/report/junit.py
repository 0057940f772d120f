"""A report as JUnit XML, which CI systems show as tests: a case for each cell and for each gate.

The format is what Ant's and Jenkins' schemas of it have in common (JUnit.xsd of Windy Road,
junit-10.xsd of Jenkins' xUnit plugin).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from phibuild.report.choice import gate_text
from phibuild.report.documents import Gate, Report, ReportCell

# Whatever XML 1.0 has no way to say.
_NO_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class _Case:
    """A test: its name, seconds, and what became of it, with a line and all that there is."""

    name: str
    cell: ReportCell
    seconds: float = 0.0
    outcome: Literal["passed", "failure", "error", "skipped"] = "passed"
    message: str = ""
    text: str = ""


def report_junit(report: Report, started: str) -> str:
    """Return the document. `started` is when the run began, as 2026-11-29T07:10:06. A suite is what
    is for one device of one model; a cell that failed is an error, a missed gate a failure, and
    what was not made or not measured is skipped."""
    root = Element("testsuites")
    places = dict.fromkeys((cell.model, cell.device) for cell in report.cells)
    for number, place in enumerate(places):
        cells = [cell for cell in report.cells if (cell.model, cell.device) == place]
        _add_suite(root, number, cells, report, started)
    indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + tostring(root, encoding="unicode") + "\n"


def _add_suite(
    root: Element, number: int, cells: list[ReportCell], report: Report, started: str
) -> None:
    cases = [case for cell in cells for case in _cases(cell)]
    outcomes = [case.outcome for case in cases]
    suite = SubElement(
        root,
        "testsuite",
        name=_name(f"{cells[0].model}.{cells[0].device}"),
        package=_name(report.recipe),
        id=str(number),
        timestamp=started,
        hostname="localhost",
        tests=str(len(cases)),
        failures=str(outcomes.count("failure")),
        errors=str(outcomes.count("error")),
        skipped=str(outcomes.count("skipped")),
        time=f"{sum(case.seconds for case in cases):.3f}",
    )
    properties = SubElement(suite, "properties")
    for name, value in (
        ("recipe", report.recipe),
        ("command", report.command),
        ("phibuild", report.phibuild_version),
        ("system", report.host.system),
    ):
        SubElement(properties, "property", name=name, value=_legal(value))
    for case in cases:
        _add_case(suite, case)
    SubElement(suite, "system-out")
    SubElement(suite, "system-err")


def _add_case(suite: Element, case: _Case) -> None:
    cell = case.cell
    element = SubElement(
        suite,
        "testcase",
        name=_name(case.name),
        classname=_name(f"{cell.model}.{cell.device}.{cell.backend}"),
        time=f"{case.seconds:.3f}",
    )
    match case.outcome:
        case "passed":
            return
        case "skipped":
            SubElement(element, "skipped", message=_legal(case.message))
        case outcome:
            kind = "gate" if outcome == "failure" else "cell"
            found = SubElement(element, outcome, type=kind, message=_legal(case.message))
            found.text = _legal(case.text)


def _cases(cell: ReportCell) -> Iterator[_Case]:
    name = cell.id.removeprefix(f"{cell.model}.{cell.device}.{cell.backend}.")
    reason = cell.reason or ""
    line = (reason.splitlines() or [""])[0]
    match cell.status:
        case "skipped":
            yield _Case(name, cell, outcome="skipped", message=line)
        case "failed":
            yield _Case(name, cell, outcome="error", message=line, text=reason)
        case "built" | "cached":
            seconds = cell.build_seconds or 0.0
            yield _Case(name, cell, seconds if cell.status == "built" else 0.0)
    for gate in cell.gates:
        beside = f" beside {gate.baseline.run}" if gate.baseline else ""
        yield _gate(f"{name}: {gate.name}{beside}", cell, gate)


def _gate(name: str, cell: ReportCell, gate: Gate) -> _Case:
    match gate.passed:
        case True:
            return _Case(name, cell)
        case None:
            why = gate.baseline.problem if gate.baseline else None
            return _Case(name, cell, outcome="skipped", message=why or "it was not measured")
    text = "it does not fit the device" if gate.name == "fits_budget" else gate_text(gate)
    return _Case(name, cell, outcome="failure", message=text, text=text)


def _legal(text: str) -> str:
    return _NO_XML.sub("\ufffd", text)


def _name(text: str) -> str:
    """Return a token: one line, single spaces."""
    return " ".join(_legal(text).split()) or "-"
