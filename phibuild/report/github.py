"""What GitHub Actions shows of a run: annotations (workflow commands) and the job's summary.

Formats: GitHub's documentation of workflow commands, which takes ten errors, ten warnings and ten
notices of a step and leaves the others out; a summary of a step has 1 MiB at most.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from phibuild.report.annotations import annotation, is_in_actions, limited
from phibuild.report.choice import choices, label
from phibuild.report.diff.documents import Difference
from phibuild.report.diff.markdown import difference_page
from phibuild.report.documents import Report
from phibuild.report.markdown import first, gate_texts
from phibuild.streams import complain
from phibuild.units import format_decimal

_SUMMARY_LIMIT = 1 << 20
_LEAST_PAGE = 2000


def report_to_actions(report: Report, page: Callable[[int], str], *, quiet: bool = False) -> None:
    """Write annotations and the job's summary if this runs in GitHub Actions. `page` returns a page
    of at most so many bytes; with `quiet` standard output is left alone. What cannot be written is
    said, and no error."""
    _to_actions(list(report_annotations(report)), page, quiet=quiet)


def difference_to_actions(difference: Difference, *, quiet: bool = False) -> None:
    """Do the same for a difference: an error for each cell that a condition applies to."""
    lines = [
        annotation("error", f"{one.id}: {one.why}", result.condition)
        for result in difference.conditions
        for one in result.cells
    ]
    _to_actions(lines, lambda limit: difference_page(difference, limit=limit), quiet=quiet)


def _to_actions(lines: Sequence[str], page: Callable[[int], str], *, quiet: bool) -> None:
    if lines and is_in_actions():
        # GitHub reads both streams.
        print("\n".join(limited(lines)), file=sys.stderr if quiet else sys.stdout, flush=True)
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if not summary:
        return
    try:
        _append(Path(summary), page)
    except OSError as error:
        complain(f"the job's summary cannot be written: {summary}: {error.strerror}")


def _append(path: Path, page: Callable[[int], str]) -> None:
    taken = path.stat().st_size if path.exists() else 0
    left = _SUMMARY_LIMIT - taken - 1
    if left < _LEAST_PAGE:
        complain(f"the job's summary is full: {path} has {format_decimal(taken)}")
        return
    data = page(left).encode("utf-8", "replace")
    if len(data) > left:
        complain(f"the job's summary has no room for the report: {path}")
        return
    with path.open("ab") as file:
        file.write((b"\n" if taken else b"") + data)


def report_annotations(report: Report) -> Iterator[str]:
    """Yield an error for each cell that failed or misses a gate, a warning for what is suspicious,
    a notice with what to ship to each device."""
    for cell in report.cells:
        if cell.status == "failed":
            yield annotation("error", f"{cell.id}: {first(cell)}", "a cell failed")
        for text in gate_texts(cell):
            yield annotation("error", f"{cell.id}: {text}", "a gate is missed")
    for model in report.models:
        for text in model.warnings:
            yield annotation("warning", f"{model.name}: {text}", "the original")
    for choice in choices(report):
        if choice.ship is None:
            yield annotation("warning", f"{choice.device}: {choice.why}", "nothing to ship")
            continue
        ship = f"{choice.ship.backend} {label(choice.ship)}"
        size = format_decimal(choice.ship.size_bytes)
        yield annotation("notice", f"{choice.device}: {ship}, {size}, {choice.why}", "to ship")
