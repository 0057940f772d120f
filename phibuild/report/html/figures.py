"""A plot of a report: its title, what it says to those who do not see it, its data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter

from phibuild.report.html.rows import JsonRow
from phibuild.report.html.specs import Kind


@dataclass(frozen=True)
class Figure:
    """A plot. Its rows are cells (`where`, `has`, `first`) or its own (`rows`). `name` is that of
    its file; `columns` are those of its data's table: field and title; `limit`: how many rows are
    drawn at most, those to ship first; `floor`: losses below it are drawn as it."""

    kind: Kind
    name: str
    title: str
    alt: str
    note: str = ""
    where: Mapping[str, str] = field(default_factory=dict)
    has: tuple[str, ...] = ()
    first: bool = False
    limit: int = 10_000
    floor: float = 1e-9
    rows: Sequence[JsonRow] | None = None
    sets: Mapping[str, Sequence[JsonRow]] = field(default_factory=dict)
    columns: Sequence[tuple[str, str]] = ()

    def select(self, cells: Iterable[JsonRow]) -> list[JsonRow]:
        """Return the rows that are drawn, of those of all cells."""
        if self.rows is not None:
            return list(self.rows)
        found = [
            cell
            for cell in cells
            if all(cell[key] == value for key, value in self.where.items())
            and all(key in cell for key in self.has)
            and (cell.get("first") or not self.first)
        ]
        kept = sorted(found, key=lambda cell: cell["verdict"] != "ship")[: self.limit]
        if self.kind == "sizes":
            kept.sort(key=itemgetter("size"), reverse=True)
        return [{**cell, "label": _label(cell, kept)} for cell in kept]


def _label(cell: JsonRow, beside: Sequence[JsonRow]) -> str:
    """Return what a cell is called beside others: its device too, where several have the name."""
    name = f"{cell['backend']} {cell['name']}"
    same = [
        one for one in beside if one["backend"] == cell["backend"] and one["name"] == cell["name"]
    ]
    return f"{cell['device']} {name}" if len(same) > 1 else name
