"""What to ship to each device and why, as lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from phibuild.report.choice import Choice
from phibuild.report.table import loss
from phibuild.report.terminal.columns import flow
from phibuild.report.terminal.words import name
from phibuild.streams import printable
from phibuild.units import format_decimal

_MIDDLE, _NAME = 60, 24
"""Columns from which on a device stands beside what is said of it, and those it has then."""


def shipping(choices: Sequence[Choice], width: int) -> Iterator[Table | Padding | Text]:
    """Yield what to ship to each device, and why that: in two columns, or one below the other."""
    several = len({choice.model for choice in choices}) > 1
    models: set[str] = set()
    name_width = min(max((Text(printable(c.device)).cell_len for c in choices), default=0), _NAME)
    for choice in choices:
        if several and choice.model not in models:
            models.add(choice.model)
            yield Text(printable(choice.model), "underline")
        device = Text(printable(choice.device), "bold", overflow="fold")
        room = width - 2 if width < _MIDDLE else width - name_width - 2
        said = Text("\n").join([*_what(choice, room), Text(printable(choice.why), "dim")])
        if width < _MIDDLE:
            yield device
            yield Padding(said, (0, 0, 0, 2))
            continue
        table = Table.grid(padding=(0, 2), pad_edge=False)
        table.add_column(width=name_width, overflow="fold")
        table.add_column(overflow="fold")
        table.add_row(device, said)
        yield table


def _what(choice: Choice, width: int) -> Iterator[Text]:
    cell = choice.ship
    if cell is None:
        yield Text("nothing", "bold yellow")
        return
    parts = [
        Text(f"{printable(cell.backend)} {name(cell)}", "bold green"),
        Text(format_decimal(cell.size_bytes)),
    ]
    if cell.quality:
        parts.append(Text(f"KL {loss(cell.quality)}"))
    yield from flow(parts, width)
