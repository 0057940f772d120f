"""Tables and lines whose figures are never cut, whatever the width."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from rich.table import Table
from rich.text import Text

Row = Sequence[Text]
_GAP = 2


@dataclass(frozen=True)
class Columns:
    """The names and widths of a table's columns; `flexible` is the one that gives way, by folding
    its texts, `numbers` stand at the right."""

    widths: Mapping[str, int]
    flexible: str
    numbers: Collection[str]

    def fit(self, rows: Sequence[Row], most: Mapping[str, int]) -> Columns:
        """Return the widths that rows want; those in `most` have no more, their texts are
        folded."""
        wanted = {
            name: max(len(name), *(row[place].cell_len for row in rows))
            for place, name in enumerate(self.widths)
        }
        fitted = {name: min(size, most.get(name, size)) for name, size in wanted.items()}
        return replace(self, widths=fitted)

    def without(self, gone: str) -> Columns:
        return replace(self, widths={name: s for name, s in self.widths.items() if name != gone})

    def within(self, width: int, least: int) -> Columns | None:
        """Return the columns folded to a width, None if that leaves less than `least` to the
        flexible one: a figure would have to be cut."""
        others = sum(size for name, size in self.widths.items() if name != self.flexible)
        room = width - others - _GAP * (len(self.widths) - 1)
        wanted = self.widths[self.flexible]
        if room < min(wanted, least):
            return None
        return replace(self, widths={**self.widths, self.flexible: min(room, wanted)})

    def table(self, rows: Iterable[Row], *, header: bool = True) -> Table:
        made = Table(
            box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="dim",
            show_header=header,
        )  # fmt: skip
        for name, size in self.widths.items():
            right = name in self.numbers
            made.add_column(
                name, width=size, justify="right" if right else "left", no_wrap=right,
                overflow="fold",
            )  # fmt: skip
        for row in rows:
            made.add_row(*row)
        return made


def columns(names: Sequence[str], flexible: str, numbers: Collection[str]) -> Columns:
    """Return columns that have no width yet."""
    return Columns({name: len(name) for name in names}, flexible, numbers)


def flow(parts: Sequence[Text], width: int) -> Iterator[Text]:
    """Yield lines of parts, two spaces between them; a line ends between two parts, unless one is
    wider than the line."""
    line = Text(overflow="fold")
    for part in parts:
        if line and line.cell_len + _GAP + part.cell_len > width:
            yield line
            line = Text(overflow="fold")
        line.append_text(Text(" " * _GAP if line else "")).append_text(part)
    if line:
        yield line
