"""What can be said of a cell in a word, with a sign and a colour of its own."""

from __future__ import annotations

from typing import Literal

from phibuild.report.choice import is_good
from phibuild.report.documents import ReportCell

Verdict = Literal["ship", "good", "gate", "budget", "unjudged", "failed", "skipped"]
VERDICTS: dict[Verdict, str] = {
    "ship": "ship",
    "good": "could ship",
    "gate": "misses a gate",
    "budget": "does not fit",
    "unjudged": "not judged",
    "failed": "failed",
    "skipped": "skipped",
}
"""By name, in the order of the legend; its words."""


def verdict(cell: ReportCell, shipped: set[str]) -> Verdict:
    """Return the verdict on a cell; `shipped` are the ids of those to ship. One that does not fit
    and misses a gate does not fit."""
    if cell.status in ("failed", "skipped"):
        return "failed" if cell.status == "failed" else "skipped"
    if cell.id in shipped:
        return "ship"
    if is_good(cell):
        return "good"
    if cell.fits_budget is False:
        return "budget"
    return "gate" if any(gate.passed is False for gate in cell.gates) else "unjudged"
