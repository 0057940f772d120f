"""A matrix of cells within the columns that there are: a table, one with a heading for each device,
or the cells of each device one below the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from phibuild.report.terminal.columns import Columns, Row, flow
from phibuild.streams import printable

WIDE, MIDDLE = 92, 66
"""Columns from which on devices have a column, and from which on there is a table at all."""


@dataclass(frozen=True)
class Square:
    """A cell: its row in a table, device and backend first, and what is said of it, below a
    `title`, where there is no room for one."""

    model: str
    device: str
    backend: str
    row: Row
    title: Text
    said: Sequence[Text]


@dataclass(frozen=True)
class Matrix:
    """How squares are laid out: the columns of a table, those that have no more than `most`, and
    what the flexible one has at `least`."""

    columns: Columns
    most: Mapping[str, int]
    least: int

    def within(self, squares: Sequence[Square], width: int) -> Iterator[RenderableType]:
        """Yield the squares, those of a model after its name."""
        for model, group in groupby(squares, lambda square: square.model):
            yield Text(printable(model), "underline", overflow="fold")
            yield from self._of_model(list(group), width)

    def _of_model(self, squares: Sequence[Square], width: int) -> Iterator[RenderableType]:
        by_device = [list(own) for _, own in groupby(squares, lambda square: square.device)]
        table = self.columns.fit([square.row for square in squares], self.most)
        if width >= WIDE and (fitted := table.within(width, self.least)):
            yield fitted.table(row for own in by_device for row in _thinned(own))
            return
        fitted = None
        if width >= MIDDLE:
            fitted = table.without("device").within(width - 2, self.least)
        if fitted:
            yield Padding(fitted.table([]), (0, 0, 0, 2))
        for own in by_device:
            yield Text(printable(own[0].device), "bold", overflow="fold")
            if fitted:
                rows = [row[1:] for row in _thinned(own)]
                yield Padding(fitted.table(rows, header=False), (0, 0, 0, 2))
            else:
                yield from _stacked(own, width)


def _thinned(squares: Sequence[Square]) -> Iterator[Row]:
    """Yield the rows of a device: its name stands in the first of them alone, and a backend's in
    the first of its own."""
    before = None
    for square in squares:
        device, backend, *rest = square.row
        new = square.backend != before
        yield (Text("") if before else device, backend if new else Text(""), *rest)
        before = square.backend


def _stacked(squares: Sequence[Square], width: int) -> Iterator[RenderableType]:
    for square in squares:
        yield Padding(square.title, (0, 0, 0, 2))
        for line in flow(square.said, width - 4):
            yield Padding(line, (0, 0, 0, 4))
