"""A plan for people, within the columns that there are: the matrix, the steps, what they take."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from phibuild.commands.plan_answer import cell_status, shared_with
from phibuild.commands.plan_words import plan_notes, plan_refusals, step_time, time_lines, total
from phibuild.execute.forecast import Forecast
from phibuild.planning.plan import Plan, PlanCell
from phibuild.report.terminal.columns import Row, columns, flow
from phibuild.report.terminal.layout import Matrix, Square
from phibuild.report.terminal.remarks import reasons
from phibuild.report.terminal.render import remark
from phibuild.streams import printable
from phibuild.units import format_decimal, written

_MATRIX = Matrix(
    columns(
        ("device", "backend", "variant", "size", "needs", "budget", "fits", "status"),
        flexible="variant", numbers=("size", "needs", "budget"),
    ),
    most={"device": 22, "backend": 20, "status": 8},
    least=16,
)  # fmt: skip
_STEPS = columns(("step", "memory", "time"), flexible="step", numbers=("memory", "time"))
_LEAST_STEP = 16


def plan_page(plan: Plan, recipe: str, times: Forecast, width: int) -> Iterator[RenderableType]:
    """Yield the parts of a plan."""
    built = [cell for cell in plan.cells if cell.artifact]
    if built:
        yield from _MATRIX.within([_square(cell) for cell in built], width)
        yield ""
    yield from _remarks(plan, width)
    if plan.steps:
        yield from _steps(plan, times, width)
        yield ""
    for line in [total(plan, recipe), *time_lines(times)]:
        yield Text(printable(line), overflow="fold")
    yield Text("phibuild plan --wide: cell ids, formats, bits per weight", "dim")


def _square(cell: PlanCell) -> Square:
    assert cell.artifact is not None  # skipped cells have no square
    one, backend, variant = cell.cell, Text(printable(cell.cell.backend)), Text(_variant(cell))
    size = Text(format_decimal(cell.artifact.estimate.artifact_bytes))
    needs, budget = Text(format_decimal(cell.device_memory_bytes)), Text(written(cell.budget))
    shared = shared_with(cell) and one.id != cell.artifact.cells[0] and not cell.artifact.cached
    status = Text("shared" if shared else cell_status(cell))
    fits, stacked = Text("yes"), Text("fits")
    if not cell.fits_budget:
        fits, stacked = Text("NO", "bold red"), Text("does NOT fit", "bold red")
    return Square(
        one.model,
        one.device,
        one.backend,
        (Text(printable(one.device), "bold"), backend, variant, size, needs, budget, fits, status),
        Text.assemble(backend, " ", variant, overflow="fold"),
        [size, Text.assemble("needs ", needs, " of ", budget), stacked, status],
    )


def _variant(cell: PlanCell) -> str:
    one, variant = cell.cell, cell.cell.variant
    own = one.label or (variant.name if variant else "")
    return printable(own if own.startswith(one.precision) else f"{one.precision} {own}".strip())


def _remarks(plan: Plan, width: int) -> Iterator[RenderableType]:
    skipped: dict[str, list[str]] = {}
    for cell in plan.cells:
        if cell.cell.skip:
            skipped.setdefault(cell.cell.skip, []).append(cell.cell.id)
    said = list(reasons("skipped", "dim", skipped, width))
    said += [remark("note", "dim", text, width) for text in plan_notes(plan)]
    for word, text in plan_refusals(plan):
        said.append(remark(word, "bold red" if word == "REFUSED" else "", text, width))
    if said:
        yield from [*said, ""]


def _steps(plan: Plan, times: Forecast, width: int) -> Iterator[RenderableType]:
    rows: list[Row] = [
        (
            Text(printable(step.id)),
            Text(format_decimal(step.memory_bytes)),
            Text(step_time(times, step.id) or "-"),
        )
        for step in plan.steps
    ]
    table = _STEPS.fit(rows, {})
    if not any(times.expected.values()):
        table, rows = table.without("time"), [row[:2] for row in rows]
    if fitted := table.within(width, _LEAST_STEP):
        yield fitted.table(rows)
        return
    for step, *takes in rows:
        yield Text.assemble(step, overflow="fold")
        for line in flow(takes, width - 2):
            yield Padding(line, (0, 0, 0, 2))
