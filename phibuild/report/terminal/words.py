"""What a reader of a terminal is told of a cell, in few words; colours say nothing besides."""

from __future__ import annotations

from rich.text import Text

from phibuild.report.documents import ReportCell
from phibuild.report.table import loss
from phibuild.streams import printable
from phibuild.units import format_decimal


def variant(cell: ReportCell) -> str:
    """Return what a cell is called beside others of its backend, marked if it is the one to ship:
    "int4 Q4_0 *", "int8-asym"."""
    return name(cell) + (" *" if cell.best else "")


def name(cell: ReportCell) -> str:
    """Return what a cell is called beside others of its backend."""
    place = f"{cell.model}.{cell.device}.{cell.backend}.{cell.precision}"
    own = cell.id.removeprefix(place).removeprefix(".") or cell.variant or ""
    return printable(own if own.startswith(cell.precision) else f"{cell.precision} {own}".strip())


def figures(cell: ReportCell) -> tuple[Text, Text, Text, Text]:
    """Return size, loss, whether it fits, and status."""
    return (
        Text(format_decimal(cell.size_bytes)),
        Text(loss(cell.quality) if cell.quality else "-"),
        fits(cell),
        status(cell),
    )


def fits(cell: ReportCell) -> Text:
    """Return whether a cell fits the budget of its device."""
    match cell.fits_budget:
        case None:
            return Text("-")
        case True:
            return Text("yes")
    return Text("NO", "bold red")


def fits_in_words(cell: ReportCell) -> Text:
    """Return whether a cell fits the budget of its device, where no heading says what it is
    about."""
    words = {None: "", True: "fits", False: "does NOT fit"}
    return Text(words[cell.fits_budget], fits(cell).style)


def status(cell: ReportCell) -> Text:
    """Return what became of a cell, and the gates that it misses: "built, misses kl"."""
    if cell.status == "failed":
        return Text("FAILED", "bold red")
    missed = [gate.name for gate in cell.gates if gate.passed is False]
    if missed:
        return Text(f"{cell.status}, misses {', '.join(missed)}", "yellow")
    return Text(cell.status)


def style(cell: ReportCell) -> str:
    """Return the style of a cell's name."""
    return "bold green" if cell.best else ""
