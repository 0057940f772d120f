"""report.json: what a run was, and what became of each cell. The contract for other programs."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from phibuild import __version__
from phibuild.backends.registry import backend
from phibuild.execute.context import Result
from phibuild.execute.local.executor import Execution
from phibuild.execute.work.readme import tokenizer_notes
from phibuild.planning.steps import Plan, PlanCell
from phibuild.report.gates import check_gates
from phibuild.report.notes import cell_notes
from phibuild.report.original import original_warnings, reference_perplexity
from phibuild.report.steps import step_rows
from phibuild.store.store import Store

SCHEMA_VERSION = 1
_PROVENANCE = (
    "key", "source_digest", "activations", "phibuild_version", "builder_digest", "toolchain_digest",
)  # fmt: skip
"""What decides an artifact's bytes besides its variant, from its manifest."""


def artifact_folder(cell: PlanCell) -> Path:
    """Return where a cell's artifact is linked, from the run's folder."""
    name = f"{cell.cell.model}-{cell.cell.backend}-{cell.cell.precision}"
    return Path("artifacts") / cell.cell.device / name


def make_report(
    plan: Plan,
    execution: Execution,
    store: Store,
    *,
    recipe: str,
    configuration: str,
    command: str,
    seconds: float,
) -> dict[str, Any]:
    """Return the report as JSON data. `configuration` is the recipe as it was composed, in YAML."""
    cells = [_cell(cell, plan, execution.results, store) for cell in plan.cells]
    _mark_best(cells)
    models = [
        {
            "name": name,
            "reference": checkpoint.reference,
            "commit": checkpoint.commit,
            "source_digest": plan.source_digests.get(name),
            "parameters": checkpoint.architecture.parameters,
            "bytes": checkpoint.weight_bytes,
            "reference_perplexity": (perplexity := reference_perplexity(cells, name)),
            "notes": list(checkpoint.notes),
            "warnings": original_warnings(perplexity, checkpoint.files.tokens),
        }
        for name, checkpoint in plan.matrix.models.items()
    ]
    count = {
        status: sum(1 for cell in cells if cell["status"] == status)
        for status in ("built", "cached", "skipped", "failed")
    }
    return {
        "schema_version": SCHEMA_VERSION,
        "phibuild_version": __version__,
        "recipe": recipe,
        "configuration": configuration,
        "configuration_sha256": hashlib.sha256(configuration.encode()).hexdigest(),
        "command": command,
        "host": {
            "system": f"{platform.system()} {platform.machine()}",
            "python": platform.python_version(),
            "cores": psutil.cpu_count(),
            "memory_bytes": psutil.virtual_memory().total,
        },
        "model": models[0],
        "models": models,
        "evaluation": plan.evaluation.model_dump(mode="json"),
        "cells": cells,
        "steps": step_rows(execution),
        "executor": {
            "kind": execution.kind,
            "cores": execution.cores,
            "memory_bytes": execution.memory_bytes,
            "bounded_by_seconds": execution.history.bounds,
        },
        "totals": {
            **count,
            "gates_failed": sum(
                1 for cell in cells if any(gate["passed"] is False for gate in cell["gates"])
            ),
            "size_bytes": sum(
                store_size
                for key in {c["artifact_digest"]: c for c in cells if c["artifact_digest"]}.values()
                if (store_size := key["size_bytes"])
            ),
            "steps": len(plan.steps),
            "seconds": seconds,
            "interrupted": not execution.complete,
        },
    }


def _cell(
    planned: PlanCell, plan: Plan, results: Mapping[str, Result], store: Store
) -> dict[str, Any]:
    cell = planned.cell
    data: dict[str, Any] = {
        "id": cell.id,
        "model": cell.model,
        "device": cell.device,
        "backend": cell.backend,
        "precision": cell.precision,
        "variant": cell.variant.name if cell.variant else None,
        "options": cell.variant.options if cell.variant else None,
        "format": cell.variant.format if cell.variant else backend(cell.backend).format,
        "status": "skipped",
        "reason": cell.skip,
        "size_bytes": None,
        "estimated_bytes": None,
        "bits_per_weight": None,
        "ratio_to_source": None,
        "build_seconds": None,
        "peak_rss_bytes": None,
        "judged": None,
        "quality": None,
        "speed": None,
        "device_memory_bytes": planned.device_memory_bytes,
        "device_budget_bytes": planned.budget,
        "fits_budget": planned.fits_budget,
        "gates": [],
        "notes": [],
        "tokenizer": None,
        "best": False,
        "artifact": None,
        "artifact_digest": None,
        "provenance": None,
    }
    if planned.artifact is None:
        return data
    result = results[planned.artifact.key]
    judging = planned.artifact.judging
    data |= {
        "notes": cell_notes(cell, plan.matrix, judging),
        "judged": judging.model_dump() if judging else None,
        "status": result.status,
        "reason": result.reason,
        "estimated_bytes": planned.artifact.estimate.artifact_bytes,
    }
    artifact = store.artifact(planned.artifact.key) if result.status != "failed" else None
    if artifact is not None:
        manifest = artifact.manifest
        data |= {
            "size_bytes": artifact.size_bytes,
            "bits_per_weight": manifest["bits_per_weight"],
            "ratio_to_source": artifact.size_bytes / plan.matrix.models[cell.model].weight_bytes,
            "build_seconds": manifest["build_seconds"],
            "peak_rss_bytes": manifest["peak_rss_bytes"],
            "artifact": artifact_folder(planned).as_posix(),
            "artifact_digest": artifact.digest,
            "provenance": {name: manifest.get(name) for name in _PROVENANCE},
            "tokenizer": manifest.get("tokenizer"),
            "notes": [
                *data["notes"],
                *(f"tokenizer: {text}" for text in tokenizer_notes(manifest.get("tokenizer"))),
            ],
        }
    if result.measure:
        peak = {"peak_rss_bytes": result.measure["peak_rss_bytes"]}
        data |= {"quality": result.measure["quality"], "speed": {**result.measure["speed"], **peak}}
    if result.status != "failed":
        data["gates"] = check_gates(
            cell.gates,
            cell.precision,
            quality=data["quality"],
            size_bytes=data["size_bytes"],
            fits_budget=planned.fits_budget,
            judging=judging,
        )
    return data


def _mark_best(cells: list[dict[str, Any]]) -> None:
    """Mark the best variant of each model and device: the smallest that was judged, fits the
    device's budget and keeps all its gates. Nobody knows what one is worth that was not judged."""
    best: dict[tuple[str, str], dict[str, Any]] = {}
    for cell in cells:
        good = (
            cell["artifact"]
            and cell["quality"]
            and cell["fits_budget"]
            and all(gate["passed"] is not False for gate in cell["gates"])
        )
        place = (cell["model"], cell["device"])
        if good and (place not in best or cell["size_bytes"] < best[place]["size_bytes"]):
            best[place] = cell
    for cell in best.values():
        cell["best"] = True
