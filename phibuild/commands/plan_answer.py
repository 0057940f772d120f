"""The plan as a document: what `plan --json` prints, for other programs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Literal

from phibuild.backends.registry import backend
from phibuild.execute.forecast import Forecast
from phibuild.planning.plan import Plan, PlanCell
from phibuild.planning.timing import Basis
from phibuild.report.notes import cell_notes
from phibuild.schema import Document, Judging, Precision


class PlanModel(Document):
    """A source."""

    name: str
    """As it stands in cell ids."""
    reference: str
    """What the recipe names: a model of the catalogue, a folder, org/name@revision."""
    commit: str | None
    """Of the Hub's repository, null for a folder."""
    is_estimate: bool
    """It is not here: figures are those of its published config.json."""
    notes: list[str]
    """How it is read, in sentences."""
    source_digest: str | None
    """sha256 of its files; null: not hashed yet, and nothing of it counts as cached."""


class PlannedCell(Document):
    """A square of the matrix: a model for a device, by a backend, at a precision."""

    id: str
    """model.device.backend.precision, and the variant (int4.Q4_K_M) where there are several"""
    device: str
    backend: str
    precision: Precision
    variant: str | None
    """What users of the backend call it (Q4_K_M). Here and below: null where it is skipped."""
    format: str | None
    """The file format."""
    status: Literal["build", "cached", "skipped"]
    reason: str | None
    """Why it is skipped."""
    estimated_bytes: int | None
    """Of the artifact's files."""
    bits_per_weight: float | None
    device_memory_bytes: int | None
    """Estimate for the device: weights, KV cache at its context length, activations of 512 tokens
    and 100 MiB."""
    device_budget_bytes: int
    """What a model, its KV cache and its buffers may take on the device."""
    fits_budget: bool | None
    judged: Judging | None
    """How it is to be judged on this machine; null: nothing is judged (`evaluation=none`)."""
    notes: list[str]
    """Where its runtime is not quite the original, in sentences."""
    artifact_key: str | None
    """In the store: the digest of all that decides the artifact's bytes."""
    shared_with: list[str]
    """Ids of cells that the same artifact is for."""


class PlannedStep(Document):
    """A step that is left to do."""

    id: str
    memory_bytes: int
    """Anonymous memory that it is admitted by."""
    estimated_bytes: int
    """The backend's own bound."""
    measured_bytes: int | None
    """What runs of its kind took on this machine; null: there were none."""
    seconds: float | None
    """That it is likely to take; null: nothing comparable has run here."""
    seconds_by: Basis | None
    """What that rests on. same: runs of exactly its kind; scaled: runs with other weights or
    variants, by the work; null: nothing."""


class PlanRefusal(Document):
    """A step that needs more memory than it can ever be given."""

    step: str
    stops: Literal["build", "measure"]
    """Whether its artifacts are not built, or not judged."""
    artifacts: list[str]
    """Their keys."""
    memory_bytes: int
    reason: str
    remedy: str


class PlanAnswer(Document):
    """What `plan --json` prints: what would be built. Sizes are bytes."""

    schema_version: Literal[1] = 1
    recipe: str
    models: list[PlanModel]
    cells: list[PlannedCell]
    steps: list[PlannedStep]
    """In the order of their dependences."""
    refusals: list[PlanRefusal]
    disk_bytes: int
    """To write, copies among them."""
    copied_bytes: int
    """Of what a run's folder cannot hold links to."""
    peak_build_memory_bytes: int
    """Of the largest step that builds."""
    cores: int
    """That the times are for: of this machine, or of a job of a cluster."""
    seconds: float | None
    """That the whole is likely to take, steps side by side as the executor runs them, without a
    cluster's queue and without the installation of environments; null: of a step nothing is
    known."""


def plan_answer(plan: Plan, recipe: str, times: Forecast) -> PlanAnswer:
    """Return the plan as a document."""
    copied, left = copied_bytes(plan), times.left()
    return PlanAnswer(
        recipe=recipe,
        models=[
            PlanModel(
                name=name,
                reference=checkpoint.reference,
                commit=checkpoint.commit,
                is_estimate=checkpoint.is_estimate,
                notes=list(checkpoint.notes),
                source_digest=plan.source_digests.get(name),
            )
            for name, checkpoint in plan.matrix.models.items()
        ],
        cells=[_cell(cell, plan) for cell in plan.cells],
        steps=[
            PlannedStep(
                id=step.id,
                memory_bytes=step.memory_bytes,
                estimated_bytes=step.need.bound,
                measured_bytes=step.need.measured,
                seconds=times.seconds(step.id),
                seconds_by=known.basis if (known := times.expected.get(step.id)) else None,
            )
            for step in plan.steps
        ],
        refusals=[
            PlanRefusal(**{**asdict(refusal), "artifacts": list(refusal.artifacts)})
            for refusal in plan.refusals
        ],
        disk_bytes=plan.disk_bytes + copied,
        copied_bytes=copied,
        peak_build_memory_bytes=plan.peak_build_memory,
        cores=times.cores,
        seconds=None if left.unknown else left.seconds,
    )


def _cell(planned: PlanCell, plan: Plan) -> PlannedCell:
    cell, variant, artifact = planned.cell, planned.cell.variant, planned.artifact
    return PlannedCell(
        id=cell.id,
        device=cell.device,
        backend=cell.backend,
        precision=cell.precision,
        variant=variant.name if variant else None,
        format=variant.format if variant else None,
        status=cell_status(planned),
        reason=cell.skip,
        estimated_bytes=artifact.estimate.artifact_bytes if artifact else None,
        bits_per_weight=artifact.estimate.bits_per_weight if artifact else None,
        device_memory_bytes=planned.device_memory_bytes,
        device_budget_bytes=planned.budget,
        fits_budget=planned.fits_budget,
        judged=artifact.judging if artifact else None,
        notes=planned_notes(planned, plan),
        artifact_key=artifact.key if artifact else None,
        shared_with=shared_with(planned),
    )


def planned_notes(planned: PlanCell, plan: Plan) -> list[str]:
    """Return what is to be known of a cell before it is built."""
    return cell_notes(planned.cell, plan.matrix, planned.artifact)


def copied_bytes(plan: Plan) -> int:
    """Return the bytes of what a run's folder cannot hold links to, where the file system has no
    reflinks: all but the small files of artifacts of such formats, each once."""
    return sum(
        artifact.estimate.artifact_bytes
        for artifact in plan.artifacts
        if backend(artifact.variant.backend).copied
    )


def cell_status(cell: PlanCell) -> Literal["build", "cached", "skipped"]:
    """Return what is to become of a cell."""
    if cell.artifact is None:
        return "skipped"
    return "cached" if cell.artifact.cached else "build"


def shared_with(cell: PlanCell) -> list[str]:
    """Return the ids of the other cells that a cell's artifact is for."""
    if cell.artifact is None:
        return []
    return [name for name in cell.artifact.cells if name != cell.cell.id]
