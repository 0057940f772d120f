"""The standard streams, whose readers (tee, head, a pager) may go before phibuild does."""

from __future__ import annotations

import os
import sys
from typing import TextIO


def silence(stream: TextIO) -> None:
    """Send all that is written to a standard stream from now on, and what is left of before,
    nowhere: the work goes on."""
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


def complain(text: str) -> None:
    """Write a line to standard error, if somebody reads it."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        silence(sys.stderr)


def printable(text: str) -> str:
    """Return text as one line that does nothing to a terminal: what is no letter, sign or space
    (an escape, a change of the writing direction, half of a character) as Python writes it."""
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in text
    )
