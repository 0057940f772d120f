"""`phibuild plan`: what would be built, before anything is."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from tabulate import tabulate

from phibuild.backends.registry import backend
from phibuild.checkpoints import hub
from phibuild.commands.common import compose, prepare
from phibuild.errors import EXIT_OK
from phibuild.planning.steps import Plan, PlanCell
from phibuild.report.notes import cell_notes, note_lines
from phibuild.units import format_mb, format_size


def run(arguments: argparse.Namespace) -> int:
    """Show the plan; builds and fetches nothing."""
    composition = compose(arguments)
    if arguments.cfg:
        print(composition.yaml(), end="")
        return EXIT_OK
    plan = prepare(arguments, composition).plan
    if arguments.json:
        print(json.dumps(plan_json(plan, composition.name), indent=1))
    else:
        print("\n".join(plan_lines(plan, composition.name)))
    return EXIT_OK


def plan_json(plan: Plan, recipe: str) -> dict[str, object]:
    """Return the plan as JSON data."""
    return {
        "schema_version": 1,
        "recipe": recipe,
        "models": [
            {
                "name": name,
                "reference": checkpoint.reference,
                "commit": checkpoint.commit,
                "is_estimate": checkpoint.is_estimate,
                "notes": list(checkpoint.notes),
                "source_digest": plan.source_digests.get(name),
            }
            for name, checkpoint in plan.matrix.models.items()
        ],
        "cells": [
            {
                "id": cell.cell.id,
                "device": cell.cell.device,
                "backend": cell.cell.backend,
                "precision": cell.cell.precision,
                "variant": cell.cell.variant.name if cell.cell.variant else None,
                "format": cell.cell.variant.format if cell.cell.variant else None,
                "status": _status(cell),
                "reason": cell.cell.skip,
                "estimated_bytes": cell.artifact.estimate.artifact_bytes if cell.artifact else None,
                "bits_per_weight": cell.artifact.estimate.bits_per_weight
                if cell.artifact
                else None,
                "device_memory_bytes": cell.device_memory_bytes,
                "device_budget_bytes": cell.budget,
                "fits_budget": cell.fits_budget,
                "notes": cell_notes(cell.cell, plan.matrix),
                "artifact_key": cell.artifact.key if cell.artifact else None,
                "shared_with": _others(cell),
            }
            for cell in plan.cells
        ],
        "steps": [
            {
                "id": step.id,
                "memory_bytes": step.memory_bytes,
                "estimated_bytes": step.demand.bound,
                "measured_bytes": step.demand.measured,
            }
            for step in plan.steps
        ],
        "refusals": [asdict(refusal) for refusal in plan.refusals],
        "disk_bytes": plan.disk_bytes + _copied_bytes(plan),
        "copied_bytes": _copied_bytes(plan),
        "peak_build_memory_bytes": plan.peak_build_memory,
    }


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
    notes = {cell.cell.id: cell_notes(cell.cell, plan.matrix) for cell in plan.cells}
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
    copied = _copied_bytes(plan)
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
    others = _others(cell)
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
        _status(cell) + shared,
    ]


def _copied_bytes(plan: Plan) -> int:
    """Return the bytes of what a run's folder cannot hold links to, where the file system has no
    reflinks: all but the small files of artifacts of such formats."""
    return sum(
        cell.artifact.estimate.artifact_bytes
        for cell in plan.cells
        if cell.artifact and backend(cell.cell.backend).copied
    )


def _status(cell: PlanCell) -> str:
    if cell.artifact is None:
        return "skipped"
    return "cached" if cell.artifact.cached else "build"


def _others(cell: PlanCell) -> list[str]:
    if cell.artifact is None:
        return []
    return [name for name in cell.artifact.cells if name != cell.cell.id]
