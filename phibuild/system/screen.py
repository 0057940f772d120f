"""The terminal, or what stands in its place: how wide it is, whether it has colours."""

from __future__ import annotations

import os
import shutil
from typing import TextIO

from rich.console import Console

WIDTH = 100
"""Columns of what people read, at most, and where there is no terminal."""


def is_terminal(stream: TextIO) -> bool:
    """Return whether somebody looks at what is written to a stream."""
    try:
        return stream.isatty()
    except ValueError:  # it is closed
        return False


def can_move(stream: TextIO) -> bool:
    """Return whether lines of a stream can be drawn anew: a terminal that is not dumb."""
    return is_terminal(stream) and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")


def has_colour(stream: TextIO, *, wanted: bool = True) -> bool:
    """Return whether a stream gets colours: if they are `wanted`, NO_COLOR is not set
    (no-color.org) and its terminal can show them. FORCE_COLOR stands in for a terminal."""
    if not wanted or os.environ.get("NO_COLOR"):
        return False
    return can_move(stream) or bool(os.environ.get("FORCE_COLOR"))


def make_console(stream: TextIO, *, colour: bool = True, width: int | None = None) -> Console:
    """Return what draws on a stream, within `width` columns (None: its own). Text is drawn as it
    is: nothing in it is markup, and no figure of it is coloured."""
    coloured = has_colour(stream, wanted=colour)
    return Console(
        file=stream,
        force_terminal=can_move(stream) or coloured,
        color_system="auto" if coloured and can_move(stream) else "standard" if coloured else None,
        no_color=not coloured,
        width=columns(stream) if width is None else width,
        legacy_windows=False,
        markup=False,
        highlight=False,
        emoji=False,
    )


def columns(stream: TextIO) -> int:
    """Return the columns of a stream: its terminal's, COLUMNS if that is set, or WIDTH."""
    said = os.environ.get("COLUMNS", "")
    if said.isdecimal() and int(said) > 0:
        return int(said)
    if is_terminal(stream):
        try:
            return os.get_terminal_size(stream.fileno()).columns or 80
        except (OSError, ValueError):  # it is not a file
            return shutil.get_terminal_size().columns
    return WIDTH
