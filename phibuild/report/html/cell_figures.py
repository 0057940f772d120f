"""The plots of cells: size, speed and position against loss, sizes against the plan."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from phibuild.report.documents import Report, ReportCell
from phibuild.report.html import texts
from phibuild.report.html.figures import Figure
from phibuild.report.html.rows import JsonRow, Row
from phibuild.units import format_decimal

_NEAR = 2.5
"""A budget is drawn where it is at most so many times the largest artifact: farther off it would
leave no room for these."""
LINES, BARS = 12, 40
"""That are drawn at most."""


def tradeoffs(report: Report, rows: Sequence[Row]) -> Iterator[Figure]:
    """Yield size against loss for each model and device that has judged cells."""
    several = len(report.models) > 1
    places: dict[tuple[str, str], list[tuple[ReportCell, Row]]] = {}
    for cell, row in zip(report.cells, rows, strict=True):
        if row.kl is not None and row.size is not None:
            places.setdefault((row.model, row.device), []).append((cell, row))
    for (model, device), pairs in places.items():
        cells = [cell for cell, _ in pairs]
        ship = next((row for _, row in pairs if row.verdict == "ship"), None)
        budget, note = _budget(cells)
        said = f"{ship.name} of {ship.backend} is to ship. " if ship else "None can be shipped. "
        front = ", ".join(
            f"{row.backend} {row.name} {row_size(row)} KL {texts.small(row.kl or 0)}"
            for _, row in sorted(pairs, key=lambda pair: pair[1].size or 0)
            if row.pareto
        )
        title = f"{device}: {model}" if several else device
        yield Figure(
            "tradeoff", f"tradeoff-{model}-{device}", title,
            f"Size against loss of {len(pairs)} artifacts for {title}. {said}None beats these in "
            f"both: {front}.",
            note, {"model": model, "device": device}, ("kl", "size"),
            floor=_floor(row.kl for _, row in pairs),
            sets={"budget": budget, "gates": _gates(cells)},
        )  # fmt: skip


def speeds(report: Report, rows: Sequence[Row]) -> Iterator[Figure]:
    """Yield speed against loss for each model."""
    for model, title in _models(report):
        judged = [row for row in rows if row.model == model and row.first and row.kl is not None]
        fast = [row for row in judged if row.decode]
        if not fast:
            continue
        best = max(fast, key=lambda row: row.decode or 0)
        yield Figure(
            "speed", f"speed-{model}", f"Speed against loss{title}",
            f"Decoding speed against loss of {len(fast)} artifacts; the fastest is {best.backend} "
            f"{best.name} with {texts.rate(best.decode)} tokens per second.",
            "On the machine that built, not on the devices: runtimes compare here, devices do not.",
            {"model": model}, ("kl", "size", "decode"), first=True,
            floor=_floor(row.kl for row in fast),
        )  # fmt: skip


def sizes(report: Report, rows: Sequence[Row]) -> Iterator[Figure]:
    """Yield sizes against the source and the plan for each model, the largest first."""
    for model, title in _models(report):
        made = [row for row in rows if row.model == model and row.first and row.size]
        if not made:
            continue
        source = next(one.bytes for one in report.models if texts.clean(one.name) == model)
        off = max((abs(row.size / row.plan - 1) for row in made if row.size and row.plan),
                  default=0)  # fmt: skip
        yield Figure(
            "sizes", f"sizes-{model}", f"Sizes against the source and the plan{title}",
            f"Sizes of {len(made)} artifacts, from {format_decimal(min(r.size or 0 for r in made))}"
            f" to {format_decimal(max(r.size or 0 for r in made))}; the source's weights are "
            f"{format_decimal(source)}; the plan was at most {100 * off:.1f} % off.",
            "Bars: the artifact; ticks: what the plan said; dashed: the source's weights.",
            {"model": model}, ("size",), first=True, limit=BARS,
            sets={"source": [{"at": source, "label": "source"}]},
        )  # fmt: skip


def positions(report: Report, rows: Sequence[Row]) -> Iterator[Figure]:
    """Yield the loss by position for each model that has it."""
    for model, title in _models(report):
        found = [row for row in rows if row.model == model and row.first and row.pos]
        if not found:
            continue
        more = (
            f" The first {LINES} of {len(found)}, those to ship before others: filter for more."
            if len(found) > LINES
            else ""
        )
        yield Figure(
            "positions", f"positions-{model}", f"Loss by position{title}",
            f"Loss in {len(found[0].pos or ())} stretches of the windows, for {len(found)} "
            "artifacts.",
            "Mean KL over stretches of the windows: what is lost late in a context shows at the "
            f"right.{more}",
            {"model": model}, ("kl", "pos"), first=True, limit=LINES,
            floor=_floor(kl for row in found for kl in row.pos or ()),
        )  # fmt: skip


def row_size(row: Row) -> str:
    return format_decimal(row.size)


def _models(report: Report) -> list[tuple[str, str]]:
    """Return the models, and what a title says of each."""
    several = len(report.models) > 1
    names = [texts.clean(model.name) for model in report.models]
    return [(name, f": {name}" if several else "") for name in names]


def _floor(losses: Iterable[float | None]) -> float:
    """Return the least loss that a plot tells apart: three decades below the largest."""
    most = max((kl for kl in losses if kl is not None), default=0.0)
    return 10.0 ** (math.floor(math.log10(most)) - 3) if most > 1e-6 else 1e-9


def _budget(cells: Sequence[ReportCell]) -> tuple[list[JsonRow], str]:
    """Return the size of an artifact that fills a device's budget, and what is said of it. KV cache
    and buffers differ a little by backend: it is that of the artifact that needs least of them."""
    rest = [
        cell.device_memory_bytes - cell.size_bytes
        for cell in cells
        if cell.device_memory_bytes is not None and cell.size_bytes is not None
    ]
    if not rest:
        return [], ""
    budget = cells[0].device_budget_bytes
    size = budget - min(rest)
    largest = max(cell.size_bytes or 0 for cell in cells)
    said = f"Budget {format_decimal(budget)}"
    if size <= 0:
        return [], f"{said}: KV cache and buffers alone do not fit."
    filled = f"with KV cache and buffers, artifacts up to about {format_decimal(size)} fit"
    if size > _NEAR * largest:
        return [], f"{said}: {filled} (beyond this plot)."
    return [{"at": size, "label": "budget"}], f"{said}: {filled}."


def _gates(cells: Sequence[ReportCell]) -> list[JsonRow]:
    """Return the limits of KL, each with the precisions that it is for."""
    limits: dict[float, list[str]] = {}
    for cell in cells:
        for gate in cell.gates:
            if gate.name == "kl" and gate.limit is not None:
                names = limits.setdefault(float(gate.limit), [])
                names += [] if cell.precision in names else [cell.precision]
    floor = _floor(cell.quality.kl_mean for cell in cells if cell.quality)
    return [
        {"at": limit, "label": f"limit {', '.join(names)}"}
        for limit, names in sorted(limits.items())
        if limit >= floor
    ]
