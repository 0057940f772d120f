"""The display that suits where a build's progress goes: standard error."""

from __future__ import annotations

import sys

from phibuild.execute.display.live import LiveProgress
from phibuild.execute.display.plain import PlainProgress, QuietProgress
from phibuild.execute.forecast import Forecast
from phibuild.system.screen import can_move, make_console


def make_progress(
    forecast: Forecast, *, quiet: bool, live: bool, colour: bool
) -> PlainProgress | QuietProgress | LiveProgress:
    """Return a display: of failures alone if it is to be `quiet`, drawn anew on a terminal where it
    may be `live`, else lines of text."""
    if quiet:
        return QuietProgress()
    if live and can_move(sys.stderr):
        return LiveProgress(make_console(sys.stderr, colour=colour), forecast)
    return PlainProgress(forecast)
