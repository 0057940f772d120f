"""Sizes as people write them ("8 GiB", "1.5GB", 4096) to bytes, and back."""

from __future__ import annotations

import re
from fractions import Fraction

_UNITS = {
    "": 1, "B": 1,
    "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
}  # fmt: skip
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_MOST = 2**63 - 1
_SIZE = re.compile(r"^\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*$")
_BINARY = re.compile(r"[0-9]\s*[KMGT]iB\s*$", re.IGNORECASE)


class Amount(int):
    """Bytes, with the text that somebody wrote them as: "4 GiB"."""

    written: str

    def __new__(cls, size: int, written: str = "") -> Amount:
        made = super().__new__(cls, size)
        made.written = written
        return made

    def __getnewargs__(self) -> tuple[int, str]:  # type: ignore[override]
        return int(self), self.written


SIZE_TEXT = {
    "type": "string",
    "pattern": r"^\s*[0-9]+(\.[0-9]+)?\s*(([KkMmGgTt][Ii]?)?[Bb])?\s*$",
    "examples": ["8 GiB", "500 MB"],
}
"""The JSON Schema of a size as text."""
UNIT_TEXT = {
    "type": "string",
    "pattern": (
        r"^\s*([0-9]+(\.[0-9]+)?\s*[MmGg][Ii]?[Bb]|[0-9]{4,}(\.[0-9]+)?\s*[Kk][Ii]?[Bb]"
        r"|([0-9]{1,3}|1[01][0-9]{2})(\.[0-9]+)?\s*[Tt][Ii]?[Bb]|[0-9]{7,}\s*[Bb]?)\s*$"
    ),
    "examples": ["8 GiB", "500 MB"],
}
"""That of one of about 1 MiB to 1 PiB, which has a unit or at least seven digits."""


def parse_size(value: object) -> int:
    """Return the bytes that a size means: an integer, or number and unit (GB 10^9, GiB 2^30).

    Raises ValueError for anything else: negative numbers, unknown units, booleans, 8 EiB and more.
    """
    found = None
    match value:
        case bool():
            pass
        case int() | float():
            if not 0 <= value < float("inf") or value != int(value):
                raise ValueError(f"a size is a whole number of bytes, zero or more, not {value!r}")
            return _bounded(int(value))
        case str():
            found = _SIZE.match(value)
    if not found:
        raise ValueError(f"{value!r} is not a size; write for example '8 GiB'")
    unit = found[2].upper()
    if unit not in _UNITS:
        raise ValueError(
            f"unknown unit {found[2]!r} in {value!r}; use B, KB, MB, GB, KiB, MiB, GiB"
        )
    return _bounded(round(Fraction(found[1]) * _UNITS[unit]))


def _bounded(size: int) -> int:
    if size > _MOST:
        raise ValueError("a size is less than 8 EiB")
    return size


def format_decimal(size: int | None) -> str:
    """Return a size in GB, MB or kB of 10^n with three significant digits: "2.28 GB"."""
    if size is None:
        return "-"
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        # What rounds to a thousand of one unit is one of the next.
        if size >= factor * 0.9995:
            number = size / factor
            places = 2 if number < 9.995 else 1 if number < 99.95 else 0
            return f"{number:,.{places}f} {unit}"
    return f"{size} B"


def written(size: int) -> str:
    """Return a size as whoever gave it wrote it ("4 GiB"), in decimal units if it was computed, or
    written as a number of bytes."""
    match size:
        case Amount(written=text) if text and not text.isdecimal():
            return text
    return format_decimal(size)


def with_decimal(text: str, size: int) -> str:
    """Return a size as it was written, its decimal one beside it if it was in powers of two: what
    stands next to decimal sizes can be compared with them. "4 GiB (4.29 GB)"."""
    return f"{text} ({format_decimal(size)})" if _BINARY.search(text) else text


def parse_age(text: str) -> float:
    """Return the seconds that a time like 12h, 30d or 2w means; raises ValueError."""
    match = re.match(r"^\s*([0-9]+(?:\.[0-9]+)?)\s*([smhdw])\s*$", text)
    if not match:
        raise ValueError(f"{text!r} is not a time; write for example 12h, 30d or 2w")
    return float(match[1]) * _SECONDS[match[2]]


def format_age(seconds: float) -> str:
    """Return a time in the unit that reads best: "45 s", "3 h", "12 d"."""
    for unit in ("d", "h", "m"):
        if seconds >= _SECONDS[unit]:
            return f"{seconds / _SECONDS[unit]:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def format_duration(seconds: float) -> str:
    """Return how long something takes: "3.2 s", "45 s", "3 min 20 s", "2 h 05 min"."""
    if seconds < 9.95:
        return f"{max(seconds, 0):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min"
