"""`phibuild plan`: what would be built, before anything is."""

from __future__ import annotations

import argparse

from tabulate import tabulate

from phibuild.commands.common import compose, prepare
from phibuild.commands.plan_answer import cell_status, plan_answer, shared_with
from phibuild.commands.plan_view import plan_page
from phibuild.commands.plan_words import plan_notes, plan_refusals, step_time, time_lines, total
from phibuild.errors import EXIT_OK
from phibuild.execute.forecast import Forecast, forecast
from phibuild.planning.plan import Plan, PlanCell
from phibuild.planning.steps import Step
from phibuild.report.terminal.render import page_width, show
from phibuild.schema import document_text
from phibuild.streams import printable
from phibuild.units import format_decimal, written


def run(arguments: argparse.Namespace) -> int:
    """Show the plan; builds and fetches nothing."""
    composition = compose(arguments)
    if arguments.cfg:
        print(composition.yaml(), end="")
        return EXIT_OK
    prepared = prepare(arguments, composition)
    plan, name = prepared.plan, composition.name
    times = forecast(plan, prepared.executor, prepared.store)
    if arguments.json:
        print(document_text(plan_answer(plan, name, times)))
    elif arguments.wide:
        print("\n".join(map(printable, "\n".join(plan_lines(plan, name, times)).splitlines())))
    else:
        page = plan_page(plan, name, times, page_width())
        show(page, colour=not arguments.no_color)
    return EXIT_OK


def plan_lines(plan: Plan, recipe: str, times: Forecast) -> list[str]:
    """Return all of a plan as text, however wide: the table, then totals and reasons."""
    built = [cell for cell in plan.cells if cell.artifact]
    lines = []
    if built:
        headers = (
            "cell",
            "variant",
            "format",
            "size",
            "bits/w",
            "device memory",
            "budget",
            "fits",
            "status",
        )
        align = ("left", "left", "left", "right", "right", "right", "right", "left", "left")
        lines.append(
            tabulate([_row(cell) for cell in built], headers, colalign=align, disable_numparse=True)
        )
        lines.append("")
    lines += [f"skipped {cell.cell.id}: {cell.cell.skip}" for cell in plan.cells if cell.cell.skip]
    lines += [f"note    {text}" for text in plan_notes(plan)]
    lines.append(total(plan, recipe))
    if plan.steps:
        steps = [f"{step.id} {_takes(step, times)}" for step in plan.steps]
        lines.append(f"steps, memory and time: {'; '.join(steps)}")
        lines += time_lines(times)
        lines.append(f"toolchains: {', '.join(plan.toolchains)}")
    lines += [f"{word:7} {text}" for word, text in plan_refusals(plan)]
    return lines


def _takes(step: Step, times: Forecast) -> str:
    return ", ".join(filter(None, [format_decimal(step.memory_bytes), step_time(times, step.id)]))


def _row(cell: PlanCell) -> list[str]:
    assert cell.artifact is not None  # skipped cells have no row
    assert cell.cell.variant is not None
    estimate = cell.artifact.estimate
    others = shared_with(cell)
    shared = (
        f", shares with {others[0]}" if others and cell.cell.id != cell.artifact.cells[0] else ""
    )
    return [
        cell.cell.id,
        cell.cell.variant.name,
        cell.cell.variant.format,
        format_decimal(estimate.artifact_bytes),
        f"{estimate.bits_per_weight:.2f}",
        format_decimal(cell.device_memory_bytes),
        written(cell.budget),
        "yes" if cell.fits_budget else "NO",
        cell_status(cell) + shared,
    ]
