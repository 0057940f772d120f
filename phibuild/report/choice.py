"""What to ship to each device, and why: what a reader of a report wants to know first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from phibuild.report.documents import Gate, Report, ReportCell
from phibuild.units import format_decimal, with_decimal

_UNITS = {"kl": " nats", "top1": "", "size": "", "fits_budget": ""}


@dataclass(frozen=True)
class Choice:
    """What a model's artifacts are for a device: the cell to ship, if there is one, why it is that
    one or why there is none, and of each other cell, in the order of the report, why it is not."""

    model: str
    device: str
    ship: ReportCell | None
    why: str
    others: tuple[tuple[ReportCell, str], ...]


def choices(report: Report) -> list[Choice]:
    """Return a choice for each model and device, in the order of the report's cells."""
    places: dict[tuple[str, str], list[ReportCell]] = {}
    for cell in report.cells:
        places.setdefault((cell.model, cell.device), []).append(cell)
    return [_choice(cells) for cells in places.values()]


def is_good(cell: ReportCell) -> bool:
    """Whether a cell can be shipped: it was judged, fits the device's budget and keeps its gates.
    Nobody knows what one is worth that was not judged."""
    return bool(
        cell.quality
        and cell.fits_budget
        and cell.size_bytes is not None
        and all(gate.passed is not False for gate in cell.gates)
    )


def smallest(cells: Sequence[ReportCell]) -> ReportCell | None:
    """Return the cell to ship of those of one model and device; the first of several as small."""
    good = [cell for cell in cells if is_good(cell)]
    return min(good, key=lambda cell: cell.size_bytes or 0, default=None)


def _choice(cells: Sequence[ReportCell]) -> Choice:
    ship = smallest(cells)
    why = _why_none(cells) if ship is None else _why(ship, cells)
    others = tuple((cell, why_not(cell, ship)) for cell in cells if cell is not ship)
    return Choice(cells[0].model, cells[0].device, ship, why, others)


def _why(ship: ReportCell, cells: Sequence[ReportCell]) -> str:
    good = sum(map(is_good, cells))
    gated = any(gate.passed is not None for gate in ship.gates if gate.name != "fits_budget")
    if good == 1:
        keeps = "fits the device and keeps its gates" if gated else "fits the device"
        return f"the only one that was judged and {keeps}"
    keeps = "fit the device and keep their gates" if gated else "fit the device"
    return f"the smallest of {good} that {keeps}"


def _why_none(cells: Sequence[ReportCell]) -> str:
    """Return why nothing can be shipped, by what came nearest to it."""
    made = [cell for cell in cells if cell.artifact_digest]
    if not made:
        failed = sum(cell.status == "failed" for cell in cells)
        counts = {"failed": failed, "skipped": len(cells) - failed}
        said = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
        return f"nothing was built: {said}"
    judged = [cell for cell in made if cell.quality]
    if not judged:
        return "nothing was judged: nobody knows what an artifact has lost"
    nearest = min(judged, key=lambda cell: (len(_problems(cell)), cell.size_bytes or 0))
    return f"none can be shipped; {nearest.backend} {label(nearest)}: {why_not(nearest, None)}"


def label(cell: ReportCell) -> str:
    """Return what a cell is called within its device and backend: int4 Q4_K_M."""
    return cell.precision if cell.variant is None else f"{cell.precision} {cell.variant}"


def why_not(cell: ReportCell, ship: ReportCell | None) -> str:
    """Return why a cell is not the one to ship."""
    if cell.status in ("skipped", "failed"):
        return (cell.reason or cell.status).partition("\n")[0]
    if problems := _problems(cell):
        return "; ".join(problems)
    if ship is None or not (ship.size_bytes and cell.size_bytes and ship.quality and cell.quality):
        return ""
    factor = cell.size_bytes / ship.size_bytes
    larger = f"{factor:.2f} times as large" if factor >= 1.005 else "as large"
    return f"{larger}, {_loss(cell.quality.kl_mean - ship.quality.kl_mean)}"


def _loss(more: float) -> str:
    if abs(more) < 5e-5:
        return "the same loss"
    return f"KL {abs(more):.4f} {'above' if more > 0 else 'below'}"


def _problems(cell: ReportCell) -> list[str]:
    """Return what stands in the way of shipping an artifact."""
    found = []
    budgeted = any(gate.name == "fits_budget" for gate in cell.gates)
    if cell.fits_budget is False and not budgeted:
        found.append(_budget(cell))
    if cell.quality is None and not any(gate.passed is False for gate in cell.gates):
        found.append("not judged")
    for gate in cell.gates:
        if gate.passed is False:
            found.append(_budget(cell) if gate.name == "fits_budget" else gate_text(gate))
    return found


def _budget(cell: ReportCell) -> str:
    return f"needs {format_decimal(cell.device_memory_bytes)} of the device's {budget_text(cell)}"


def budget_text(cell: ReportCell) -> str:
    """Return a device's budget as its file has it, so that it compares with decimal sizes:
    "4 GiB (4.29 GB)"."""
    size = cell.device_budget_bytes
    return with_decimal(cell.device_budget_written or format_decimal(size), size)


def gate_text(gate: Gate) -> str:
    """Return a gate's figure and limit: "kl 0.0613 of at most 0.05 nats"; of a baseline's: "kl
    0.0613 of at most 0.05 nats (1.05 times the 0.0476 of releases/1.3.0)"."""
    bound = "least" if gate.name == "top1" else "most"
    value, limit = _shown(gate, gate.value), _shown(gate, gate.limit)
    text = f"{gate.name} {value} of at {bound} {limit}{_UNITS[gate.name]}"
    if gate.baseline is None:
        return text
    base, factor, margin = gate.baseline.value, gate.baseline.factor, gate.baseline.margin
    beside = f"{_shown(gate, abs(margin))} {'more' if margin > 0 else 'less'} than"
    beside = beside if margin else f"{factor:.4g} times"
    return f"{text} ({beside} the {_shown(gate, base)} of {gate.baseline.run})"


def _shown(gate: Gate, figure: float | None) -> str:
    if figure is None:
        return "not judged"
    return format_decimal(int(figure)) if gate.name == "size" else f"{figure:.4g}"
