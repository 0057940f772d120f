"""Making a run's report: what became of each cell, by its plan, its results and the store."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from phibuild import __version__
from phibuild.backends.registry import backend
from phibuild.checkpoints.facts import Checkpoint
from phibuild.execute.context import Result
from phibuild.execute.local.executor import Execution
from phibuild.planning.plan import Plan, PlanCell
from phibuild.planning.readme import tokenizer_notes
from phibuild.report.baseline_gates import baseline_notes, check_baseline
from phibuild.report.choice import smallest
from phibuild.report.documents import (
    CellSpeed,
    Host,
    Provenance,
    Report,
    ReportCell,
    ReportExecutor,
    ReportModel,
    Totals,
)
from phibuild.report.gates import check_gates
from phibuild.report.notes import cell_notes
from phibuild.report.original import original_warnings, reference_perplexity
from phibuild.report.sensitivity import sensitivities
from phibuild.report.steps import step_rows
from phibuild.schema import Options
from phibuild.store.documents import ArtifactManifest
from phibuild.store.store import Store
from phibuild.units import written


def artifact_folder(cell: PlanCell) -> Path:
    """Return where a cell's artifact is linked, from the run's folder."""
    one = cell.cell
    name = "-".join(filter(None, (one.model, one.backend, one.precision, one.label)))
    return Path("artifacts") / one.device / name


def make_report(
    plan: Plan,
    execution: Execution,
    store: Store,
    *,
    recipe: str,
    configuration: str,
    command: str,
    seconds: float,
) -> Report:
    """Return the report. `configuration` is the recipe as it was composed, in YAML."""
    cells = [_cell(cell, plan, execution.results, store) for cell in plan.cells]
    best = _best(cells)
    cells = [cell.model_copy(update={"best": cell.id in best}) for cell in cells]
    models = [
        _model(name, checkpoint, plan.source_digests.get(name), cells)
        for name, checkpoint in plan.matrix.models.items()
    ]
    return Report(
        phibuild_version=__version__,
        recipe=recipe,
        configuration=configuration,
        configuration_sha256=hashlib.sha256(configuration.encode()).hexdigest(),
        command=command,
        host=Host(
            system=f"{platform.system()} {platform.machine()}",
            python=platform.python_version(),
            cores=psutil.cpu_count(),
            memory_bytes=psutil.virtual_memory().total,
        ),
        model=models[0],
        models=models,
        evaluation=plan.evaluation,
        cells=cells,
        sensitivities=sensitivities(plan, store),
        steps=step_rows(execution),
        executor=ReportExecutor(
            kind=execution.kind,
            cores=execution.cores,
            memory_bytes=execution.memory_bytes,
            bounded_by_seconds=execution.history.bounds,
        ),
        totals=_totals(cells, plan, seconds, interrupted=not execution.complete),
    )


def _model(
    name: str, checkpoint: Checkpoint, source_digest: str | None, cells: Sequence[ReportCell]
) -> ReportModel:
    perplexity = reference_perplexity(cells, name)
    return ReportModel(
        name=name,
        reference=checkpoint.reference,
        commit=checkpoint.commit,
        source_digest=source_digest,
        parameters=checkpoint.architecture.parameters,
        bytes=checkpoint.weight_bytes,
        reference_perplexity=perplexity,
        notes=list(checkpoint.notes),
        warnings=original_warnings(perplexity, checkpoint.files.tokens),
    )


def _options(planned: PlanCell, made: ArtifactManifest | None) -> Options | None:
    if made:
        return made.variant.options
    return planned.artifact.variant.options if planned.artifact else None


def _totals(
    cells: Sequence[ReportCell], plan: Plan, seconds: float, *, interrupted: bool
) -> Totals:
    statuses = [cell.status for cell in cells]
    sizes = {cell.artifact_digest: cell.size_bytes for cell in cells if cell.artifact_digest}
    return Totals(
        built=statuses.count("built"),
        cached=statuses.count("cached"),
        skipped=statuses.count("skipped"),
        failed=statuses.count("failed"),
        gates_failed=sum(any(gate.passed is False for gate in cell.gates) for cell in cells),
        size_bytes=sum(size or 0 for size in sizes.values()),
        steps=len(plan.steps),
        seconds=seconds,
        interrupted=interrupted,
    )


def _cell(planned: PlanCell, plan: Plan, results: Mapping[str, Result], store: Store) -> ReportCell:
    cell, variant = planned.cell, planned.cell.variant
    result = results[planned.artifact.key] if planned.artifact else None
    failed = result is None or result.status == "failed"
    artifact = None if failed or not planned.artifact else store.artifact(planned.artifact.key)
    made = artifact.manifest if artifact else None
    measure = result.measure if result else None
    judging = planned.artifact.judging if planned.artifact else None
    size_bytes = artifact.size_bytes if artifact else None
    tokenizer = made.tokenizer if made else None
    gates = check_gates(
        cell.gates,
        cell.precision,
        variant.name if variant else None,
        quality=measure.quality if measure else None,
        size_bytes=size_bytes,
        fits_budget=planned.fits_budget,
        judging=judging,
    ) + check_baseline(
        cell,
        plan.matrix.baselines.get(cell.id),
        quality=measure.quality if measure else None,
        size_bytes=size_bytes,
        judging=judging,
    )
    differences = tokenizer_notes(tokenizer) if tokenizer else []
    source_bytes = plan.matrix.models[cell.model].weight_bytes
    return ReportCell(
        id=cell.id,
        model=cell.model,
        device=cell.device,
        backend=cell.backend,
        precision=cell.precision,
        variant=variant.name if variant else None,
        options=_options(planned, made),
        format=variant.format if variant else backend(cell.backend).format,
        status=result.status if result else "skipped",
        reason=result.reason if result else cell.skip,
        size_bytes=size_bytes,
        estimated_bytes=planned.artifact.estimate.artifact_bytes if planned.artifact else None,
        bits_per_weight=made.bits_per_weight if made else None,
        ratio_to_source=None if size_bytes is None else size_bytes / source_bytes,
        build_seconds=made.build_seconds if made else None,
        build_own_seconds=made.build_own_seconds if made else None,
        build_shared_seconds=made.build_shared_seconds if made else None,
        peak_rss_bytes=made.peak_rss_bytes if made else None,
        judged=judging,
        quality=measure.quality if measure else None,
        speed=CellSpeed(**dict(measure.speed), peak_rss_bytes=measure.peak_rss_bytes)
        if measure
        else None,
        device_memory_bytes=planned.device_memory_bytes,
        device_budget_bytes=planned.budget,
        device_budget_written=written(planned.budget),
        fits_budget=planned.fits_budget,
        gates=[] if failed else gates,
        notes=[
            *cell_notes(cell, plan.matrix, planned.artifact),
            *([] if failed else baseline_notes(gates)),
            *(f"tokenizer: {text}" for text in differences),
        ],
        tokenizer=tokenizer,
        best=False,
        artifact=artifact_folder(planned).as_posix() if artifact else None,
        artifact_digest=artifact.digest if artifact else None,
        provenance=_provenance(made) if made else None,
    )


def _provenance(made: ArtifactManifest) -> Provenance:
    return Provenance(**{name: getattr(made, name) for name in Provenance.model_fields})


def _best(cells: Sequence[ReportCell]) -> set[str]:
    """Return the ids of the best variant of each model and device."""
    places: dict[tuple[str, str], list[ReportCell]] = {}
    for cell in cells:
        places.setdefault((cell.model, cell.device), []).append(cell)
    return {best.id for group in places.values() if (best := smallest(group))}
