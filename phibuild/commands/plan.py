"""`phibuild plan`: what would be built, before anything is."""

from __future__ import annotations

import argparse

from tabulate import tabulate

from phibuild.checkpoints import hub
from phibuild.commands.common import compose, prepare
from phibuild.commands.plan_answer import (
    cell_status,
    copied_bytes,
    plan_answer,
    planned_notes,
    shared_with,
)
from phibuild.errors import EXIT_OK
from phibuild.planning.plan import Plan, PlanCell
from phibuild.report.notes import note_lines
from phibuild.schema import document_text
from phibuild.units import format_mb, format_size


def run(arguments: argparse.Namespace) -> int:
    """Show the plan; builds and fetches nothing."""
    composition = compose(arguments)
    if arguments.cfg:
        print(composition.yaml(), end="")
        return EXIT_OK
    plan = prepare(arguments, composition).plan
    if arguments.json:
        print(document_text(plan_answer(plan, composition.name)))
    else:
        print("\n".join(plan_lines(plan, composition.name)))
    return EXIT_OK


def plan_lines(plan: Plan, recipe: str) -> list[str]:
    """Return the plan as text: the table, then totals and reasons."""
    built = [cell for cell in plan.cells if cell.artifact]
    lines = []
    if built:
        headers = (
            "cell",
            "variant",
            "format",
            "est. MB",
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
    notes = {cell.cell.id: planned_notes(cell, plan) for cell in plan.cells}
    lines += note_lines(notes)
    for name, checkpoint in plan.matrix.models.items():
        lines += [f"note    {name}: {text}" for text in checkpoint.notes]
        if checkpoint.is_estimate:
            lines.append(
                f"note    {name} is not, or not whole, in the Hub's cache ({hub.cache_folder()}): "
                "sizes are estimates, figures are those of its published config.json; a build "
                "fetches it from the Hub"
            )
        elif checkpoint.commit and not checkpoint.pinned:
            lines.append(
                f"note    {name} is {checkpoint.reference} as it was fetched, commit "
                f"{checkpoint.commit}; 'build --refresh' asks the Hub again"
            )
        if not checkpoint.is_estimate and name not in plan.source_digests:
            lines.append(f"note    {name} has not been hashed yet: nothing of it counts as cached")
    artifacts = len(plan.artifacts)
    cached = sum(artifact.cached for artifact in plan.artifacts)
    copied = copied_bytes(plan)
    copies = f" ({format_mb(copied)} MB of it copies in the run's folder)" if copied else ""
    lines.append(
        f"{recipe}: {len(plan.cells)} cells, {artifacts} artifacts, {cached} cached; "
        f"{format_mb(plan.disk_bytes + copied)} MB of disk to write{copies}, "
        f"peak build memory {format_size(plan.peak_build_memory)}"
    )
    if plan.steps:
        steps = [f"{step.id} {format_size(step.memory_bytes)}" for step in plan.steps]
        lines.append(f"steps and their memory: {', '.join(steps)}")
        lines.append(f"toolchains: {', '.join(plan.toolchains)}")
    names = {artifact.key: artifact.cells for artifact in plan.artifacts}
    for refusal in plan.refusals:
        cells = ", ".join(cell for key in refusal.artifacts for cell in names[key])
        what = "not built" if refusal.stops == "build" else "not judged"
        lines.append(f"REFUSED {refusal.step}: {refusal.reason} ({what}: {cells})")
    lines += [f"help    {text}" for text in dict.fromkeys(one.remedy for one in plan.refusals)]
    return lines


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
        format_mb(estimate.artifact_bytes),
        f"{estimate.bits_per_weight:.2f}",
        format_size(cell.device_memory_bytes),
        format_size(cell.budget),
        "yes" if cell.fits_budget else "NO",
        cell_status(cell) + shared,
    ]
