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


def format_mb(size: int | None) -> str:
    """Return a size in MB (10^6 bytes) with about three significant digits."""
    if size is None:
        return "-"
    megabytes = size / 1e6
    if megabytes >= 1000:
        return f"{megabytes:,.0f}"
    return f"{megabytes:.1f}" if megabytes >= 10 else f"{megabytes:.2f}"


def format_size(size: int | None) -> str:
    """Return a size with the unit that reads best: "6.00 GiB", "812 MiB"."""
    if size is None:
        return "-"
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= factor:
            number = size / factor
            return f"{number:.2f} {unit}" if number < 10 else f"{number:.1f} {unit}"
    return f"{size} B"


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
