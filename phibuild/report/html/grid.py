"""The matrix of a report: for each device a small table, backends by precisions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from phibuild.report.choice import budget_text
from phibuild.report.documents import Report
from phibuild.report.html.rows import Row
from phibuild.schema import PRECISIONS


@dataclass(frozen=True)
class Grid:
    """What a model's cells for a device are: backend -> for each precision its cells."""

    model: str
    device: str
    budget: str
    precisions: tuple[str, ...]
    backends: dict[str, list[list[Row]]]


def grids(report: Report, rows: Sequence[Row]) -> Iterator[Grid]:
    """Yield a grid for each model and device, in the order of the cells."""
    places: dict[tuple[str, str], list[Row]] = {}
    budgets: dict[tuple[str, str], str] = {}
    for cell, row in zip(report.cells, rows, strict=True):
        places.setdefault((row.model, row.device), []).append(row)
        budgets[row.model, row.device] = budget_text(cell)
    for (model, device), group in places.items():
        precisions: list[str] = [
            name for name in PRECISIONS if any(row.precision == name for row in group)
        ]
        backends: dict[str, list[list[Row]]] = {}
        for row in group:
            squares = backends.setdefault(row.backend, [[] for _ in precisions])
            squares[precisions.index(row.precision)].append(row)
        yield Grid(model, device, budgets[model, device], tuple(precisions), backends)
