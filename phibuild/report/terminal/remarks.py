"""What is to be said below the matrix: warnings, failures, gates that were missed, skips. What has
one reason is said once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from rich.console import RenderableType

from phibuild.report.baseline_gates import baseline_notes
from phibuild.report.choice import gate_text
from phibuild.report.documents import Report, ReportCell
from phibuild.report.terminal.render import remark

_NAMED, _SHOWN = 3, 20
"""Cells that are named for a reason, and reasons and gates that are shown."""


def remarks(report: Report, width: int) -> Iterator[RenderableType]:
    """Yield a line, or several, for each thing that is to be known."""
    for model in report.models:
        for text in model.warnings:
            yield remark("WARNING", "bold yellow", f"{model.name}: {text}", width)
    failed = ((cell, cell.reason) for cell in report.cells if cell.status == "failed")
    yield from reasons("FAILED", "bold red", _by_reason(failed), width)
    missed = [(cell, gate) for cell in report.cells for gate in cell.gates if gate.passed is False]
    for cell, gate in missed[:_SHOWN]:
        yield remark("GATE", "yellow", f"{cell.id}: {gate_text(gate)}", width)
    if missed[_SHOWN:]:
        yield remark("GATE", "yellow", f"and {len(missed) - _SHOWN} more", width)
    idle = ((cell, note) for cell in report.cells for note in baseline_notes(cell.gates))
    yield from reasons("note", "dim", _by_reason(idle), width)
    unheard = {
        f"not judged: {note}": ids
        for note, ids in _by_reason(
            (cell, cell.judged.note)
            for cell in report.cells
            if cell.judged and cell.judged.how == "no"
        ).items()
    }
    yield from reasons("note", "dim", unheard, width)
    skipped = ((cell, cell.reason) for cell in report.cells if cell.status == "skipped")
    yield from reasons("skipped", "dim", _by_reason(skipped), width)


def _by_reason(cells: Iterable[tuple[ReportCell, str | None]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for cell, reason in cells:
        found.setdefault(reason or "", []).append(cell.id)
    return found


def reasons(
    word: str, style: str, found: Mapping[str, Sequence[str]], width: int
) -> Iterator[RenderableType]:
    """Yield a remark for each reason, with the ids of the cells that it is of."""
    for reason, ids in list(found.items())[:_SHOWN]:
        yield remark(word, style, f"{_named(ids)}: {reason}", width)
    if more := list(found.values())[_SHOWN:]:
        cells = sum(map(len, more))
        yield remark(word, style, f"and {cells} more, for {len(more)} other reasons", width)


def _named(ids: Sequence[str]) -> str:
    rest = f" and {len(ids) - _NAMED} more" if ids[_NAMED:] else ""
    return ", ".join(ids[:_NAMED]) + rest
