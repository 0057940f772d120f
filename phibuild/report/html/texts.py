"""A report's figures as people read them on the page."""

from __future__ import annotations

from phibuild.report.choice import budget_text
from phibuild.report.documents import ReportCell
from phibuild.store.documents import Quality
from phibuild.units import format_decimal

NOTHING = "-"
_RESOLUTION = 1e-9  # of KL, in nats (docs/judging.md)


def clean(text: str) -> str:
    """Return a text without what no UTF-8 file can hold: names of files may have it."""
    return text.encode("utf-8", "replace").decode("utf-8")


def small(value: float) -> str:
    """Return a loss in nats; what is below the resolution says so."""
    if value < _RESOLUTION:
        return "<1e-9"
    return f"{value:.4f}" if value >= 1e-3 else f"{value:.1e}"


def with_error(value: float, error: float | None) -> str:
    """Return a loss in nats and its standard error, if there is one."""
    if error is None or value < _RESOLUTION:
        return small(value)
    return f"{small(value)} ± {f'{error:.4f}' if value >= 1e-3 else f'{error:.1e}'}"


def loss(quality: Quality | None) -> str:
    return NOTHING if quality is None else with_error(quality.kl_mean, quality.kl_error)


def number(value: float | None, places: int) -> str:
    return NOTHING if value is None else f"{value:.{places}f}"


def rate(value: float | None) -> str:
    """Return tokens per second; more digits where there are few, as with a large model."""
    if value is None:
        return NOTHING
    places = 0 if value >= 10 else 1 if value >= 1 else 2
    return f"{value:,.{places}f}"


def seconds(value: float | None) -> str:
    """Return a time: "30 ms", "0.4 s", "75 s", "12 min"."""
    if value is None:
        return NOTHING
    if value >= 600:
        return f"{value / 60:,.0f} min"
    if value < 0.0995:
        return f"{1000 * value:.0f} ms"
    return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"


def memory(cell: ReportCell) -> str:
    """Return what a cell takes on its device, of what it may take."""
    if cell.device_memory_bytes is None:
        return NOTHING
    return f"{format_decimal(cell.device_memory_bytes)} of {budget_text(cell)}"


def change(value: float) -> str:
    """Return a ratio as a change: "1.2 % larger"."""
    percent = 100 * abs(value - 1)
    if percent < 0.05:
        return "the same"
    return f"{percent:.1f} % {'larger' if value > 1 else 'smaller'}"
