"""What is to be shown as lines of text that fit."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from phibuild.streams import printable
from phibuild.system.screen import WIDTH, columns, has_colour

LEAST = 20
"""Columns below which nothing is folded any more."""
_INDENT, _NARROW = 8, 50


def show(parts: Iterable[RenderableType], *, colour: bool = True) -> None:
    """Print parts within `page_width`, coloured if that is wanted and the terminal can."""
    coloured = has_colour(sys.stdout, wanted=colour)
    print(render(parts, page_width(), colour=coloured), flush=True)


def page_width() -> int:
    """Return the columns that people get: their terminal's, at most WIDTH."""
    return max(min(columns(sys.stdout), WIDTH), LEAST)


def render(parts: Iterable[RenderableType], width: int, *, colour: bool = False) -> str:
    """Return parts as lines of at most `width` columns, without spaces at their ends."""
    stream = io.StringIO()
    console = Console(
        file=stream, width=max(width, LEAST), force_terminal=colour, no_color=not colour,
        color_system="standard" if colour else None, legacy_windows=False,
        markup=False, highlight=False, emoji=False,
    )  # fmt: skip
    for part in parts:
        console.print(part)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())


def remark(word: str, style: str, text: str, width: int) -> Table | Text:
    """Return a word and, beside it, a text of one or several lines; where there is no room for
    that, the text goes on below it."""
    lines = Text("\n".join(printable(line) for line in text.splitlines()), overflow="fold")
    if width < _NARROW:
        return Text.assemble((word, style), " ", lines, overflow="fold")
    table = Table.grid(padding=(0, 1), pad_edge=False)
    table.add_column(width=_INDENT - 1)
    table.add_column(overflow="fold")
    table.add_row(Text(word, style), lines)
    return table
