"""Which cells of two runs are the same: by id, else by what they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from phibuild.report.documents import ReportCell
from phibuild.schema import Cell, Options


@dataclass(frozen=True)
class CellName:
    """What a cell is called, and what it is: `variant` is None where it was skipped."""

    id: str
    model: str
    device: str
    backend: str
    precision: str
    variant: str | None
    options: str = ""


def reported(cell: ReportCell) -> CellName:
    """Return the name of a report's cell."""
    return CellName(
        cell.id,
        cell.model,
        cell.device,
        cell.backend,
        cell.precision,
        cell.variant,
        _options(cell.options),
    )


def planned(cell: Cell) -> CellName:
    """Return the name of a cell that is to be built."""
    variant = cell.variant
    return CellName(
        cell.id,
        cell.model,
        cell.device,
        cell.backend,
        cell.precision,
        variant.name if variant else None,
        _options(variant.options if variant else None),
    )


def _options(options: Options | None) -> str:
    return repr(sorted((options or {}).items()))


_WAYS: tuple[Callable[[CellName], Hashable | None], ...] = (
    lambda cell: cell.id,
    # An id gains the variant's name where its precision gets a second one, and loses it again.
    lambda cell: _place(cell, cell.variant) if cell.variant else None,
    lambda cell: _place(cell, cell.variant, cell.options) if cell.variant else None,
)


def _place(cell: CellName, *more: str | None) -> tuple[str | None, ...]:
    return (cell.model, cell.device, cell.backend, cell.precision, *more)


def match_cells(one: Sequence[CellName], other: Sequence[CellName]) -> dict[str, str]:
    """Return id -> id in the other run. A cell has one partner at most; where several could be it,
    by the same name of a variant, there is none."""
    found: dict[str, str] = {}
    for way in _WAYS:
        taken = set(found.values())
        left = [(way(cell), cell.id) for cell in one if cell.id not in found]
        there = [(way(cell), cell.id) for cell in other if cell.id not in taken]
        counts = Counter(name for name, _ in left)
        others = Counter(name for name, _ in there)
        by_name = dict(there)
        found |= {
            own: by_name[name]
            for name, own in left
            if name is not None and counts[name] == 1 and others[name] == 1
        }
    return found
