"""Parts of plots that all of them use: axes, their labels, what a mark tells of itself."""

from __future__ import annotations

from phibuild.report.html.theme import Spec

# Expressions for labels of axes (https://vega.github.io/vega/docs/expressions/).
BYTES = (
    "datum.value >= 1e9 ? format(datum.value / 1e9, '.3~r') + ' GB' : "
    "datum.value >= 1e6 ? format(datum.value / 1e6, '.3~r') + ' MB' : "
    "datum.value >= 1e3 ? format(datum.value / 1e3, '.3~r') + ' kB' : format(datum.value, '~g')"
)
FLOOR = (
    "(datum.value <= floor ? '≤ ' : '') + "
    "(datum.value < 0.001 ? format(datum.value, '.0e') : format(datum.value, '~r'))"
)
DECADES = [float(f"{digit}e{power}") for power in range(-9, 2) for digit in (1, 3)]
"""Losses at which an axis has a tick."""
# Losses below `floor` are drawn there, as their errors are: a logarithm has no zero.
CLIPPED = [
    {"filter": "isValid(datum.kl) && isValid(datum.size)"},
    {"calculate": "max(datum.kl, floor)", "as": "y"},
    {"calculate": "max(datum.kl - (isValid(datum.err) ? datum.err : 0), floor)", "as": "low"},
    {"calculate": "max(datum.kl + (isValid(datum.err) ? datum.err : 0), floor)", "as": "high"},
]
# Of a mark that tells of itself: the page shows what it knows of the datum.
TIP = {"tooltip": {"content": "data"}}


def position(field: str, title: str, scale: str, axis: Spec, *, zero: bool = False) -> Spec:
    """Return a channel of place: a field by a linear or a log scale."""
    how: Spec = {"type": scale, "zero": zero} if scale == "linear" else {"type": scale}
    if field in ("size", "decode") and not zero:
        how["padding"] = 14  # no point lies on an axis
    elif scale == "log":
        how["padding"] = 20
    return {
        "field": field,
        "type": "quantitative",
        "title": title,
        "scale": {**how, "nice": scale != "log"},
        "axis": {"tickCount": 5, **axis},
    }
