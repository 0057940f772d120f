"""Artifacts to build and measure steps: together where memory allows, apart where it does not.

What needs more memory than steps can ever be given is refused, with the figure and what would help.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from phibuild.backends.registry import backend
from phibuild.checkpoints.facts import Checkpoint
from phibuild.planning.code import step_digest
from phibuild.planning.matrix import Matrix
from phibuild.planning.memory import MemoryNeed, memory_need
from phibuild.planning.plan import Refusal
from phibuild.planning.steps import (
    BackendStep,
    BuildStep,
    CalibrationStep,
    MeasureStep,
    OriginalStep,
    PlannedArtifact,
    ReferenceStep,
    SourceStep,
)
from phibuild.schema import Evaluation
from phibuild.store.store import Store, content_key
from phibuild.units import format_decimal

_Step = TypeVar("_Step", bound=BackendStep)
_Needs = Callable[[Sequence[PlannedArtifact]], MemoryNeed]
_BUILDING_HELP = "use a machine with more memory, or set executor.memory if this one has it"
_JUDGING_HELP = f"{_BUILDING_HELP}; fewer evaluation.windows and evaluation=none need less"


@dataclass
class FittedSteps:
    """What there is to do, and what cannot be done within `limit` bytes (None: not known)."""

    limit: int | None
    builds: list[BuildStep] = field(default_factory=list)
    measures: list[MeasureStep] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)

    def fits(self, bytes: int) -> bool:
        return self.limit is None or bytes <= self.limit

    def refuse(
        self,
        step: str,
        stops: str,
        what: str,
        artifact: PlannedArtifact,
        bytes: int,
        instead: str | None = None,
    ) -> None:
        """Note that `what` cannot be done, which stops the `build` or the `measure` of an
        artifact, and what can be asked for `instead`."""
        assert self.limit is not None  # without a limit everything fits
        help = _BUILDING_HELP if stops == "build" else _JUDGING_HELP
        if instead:
            help += f"; {instead}"
        reason = (
            f"{what} needs {format_decimal(bytes)} of memory, steps can be given "
            f"{format_decimal(self.limit)}"
        )
        known = [one for one in self.refusals if (one.step, one.reason) == (step, reason)]
        keys = (*known[0].artifacts, artifact.key) if known else (artifact.key,)
        self.refusals = [one for one in self.refusals if one not in known]
        self.refusals.append(Refusal(step, stops, keys, bytes, reason, help))

    def refuses(self, original: OriginalStep, stops: str, artifact: PlannedArtifact) -> bool:
        """Return whether an artifact cannot be had for want of what the original would say."""
        if original.cached or self.fits(original.memory_bytes):
            return False
        what = "reading the source" if original.kind == "source" else "running the original"
        self.refuse(original.id, stops, what, artifact, original.memory_bytes)
        return True


@dataclass(frozen=True)
class Originals:
    """The steps of the originals: `sources` and `references` by model, `calibrations` by the
    keys of what they leave."""

    sources: Mapping[str, SourceStep]
    references: Mapping[str, ReferenceStep]
    calibrations: Mapping[str, CalibrationStep]

    def to_build(self, artifact: PlannedArtifact) -> list[OriginalStep]:
        """Return what an artifact is built from."""
        steps: list[OriginalStep] = [self.sources[artifact.model]]
        steps += [self.calibrations[key] for key in artifact.inputs]
        return steps

    def to_judge(self, artifact: PlannedArtifact) -> list[OriginalStep]:
        """Return what an artifact is judged by."""
        reference = self.references[artifact.model]
        return [reference] if reference.cached else [self.sources[artifact.model], reference]


def fit_steps(
    matrix: Matrix,
    artifacts: Sequence[PlannedArtifact],
    originals: Originals,
    evaluation: Evaluation,
    store: Store,
    limit: int | None,
) -> FittedSteps:
    """Return the steps for artifacts that are not there or have not been judged."""
    found = FittedSteps(limit)
    builds: dict[tuple[str, str], list[PlannedArtifact]] = {}
    measures: dict[tuple[str, str], list[PlannedArtifact]] = {}
    opened = {one.stand_in for one in artifacts if not one.judged}
    for artifact in artifacts:
        place = (artifact.model, artifact.variant.backend)
        if not artifact.cached and (artifact.cells or artifact.key in opened):
            needed = originals.to_build(artifact)
            if any(found.refuses(step, "build", artifact) for step in needed):
                continue
            builds.setdefault(place, []).append(artifact)
        if artifact.measure_key is not None and not artifact.judged:
            needed = originals.to_judge(artifact)
            if any(found.refuses(step, "measure", artifact) for step in needed):
                continue
            measures.setdefault(place, []).append(artifact)
    for (model, name), group in builds.items():
        wants = _build_needs(matrix.models[model], name, store)
        found.builds += _fitting(found, BuildStep(model, name, tuple(group), wants(group)), wants)
    refused = {key for one in found.refusals if one.stops == "build" for key in one.artifacts}
    opened = {
        one.stand_in for group in measures.values() for one in group if one.key not in refused
    }
    found.builds = [kept for step in found.builds if (kept := _without_idle(step, opened))]
    for (model, name), group in measures.items():
        group = [artifact for artifact in group if artifact.key not in refused]
        if group:
            wants = _judge_needs(matrix.models[model], name, evaluation, store)
            step = MeasureStep(model, name, tuple(group), wants(group))
            found.measures += _fitting(found, step, wants)
    return found


def _without_idle(step: BuildStep, opened: Collection[str | None]) -> BuildStep | None:
    """Return a step without artifacts that are there to be opened for others, of which none is."""
    left = tuple(one for one in step.artifacts if one.cells or one.key in opened)
    return replace(step, artifacts=left) if left else None


def _fitting(found: FittedSteps, step: _Step, wants: _Needs) -> list[_Step]:
    """Return the step if it fits; else one step for all that fits together without what does not
    fit alone, or one for each."""
    if found.fits(step.memory_bytes):
        return [step]
    left = []
    for artifact in step.artifacts:
        alone = wants([artifact]).bytes
        if found.fits(alone):
            left.append(artifact)
        else:
            verb, instead = "judging", None
            if step.kind == "build":
                verb = "building"
                instead = backend(artifact.variant.backend).less_memory(artifact.variant)
            what = f"{verb} {artifact.variant.name}"
            found.refuse(step.id, step.kind, what, artifact, alone, instead)
    if not left:
        return []
    rest = replace(step, artifacts=tuple(left), need=wants(left))
    if found.fits(rest.memory_bytes):
        return [rest]
    return [
        replace(step, artifacts=(artifact,), need=wants([artifact]), part=part)
        for part, artifact in enumerate(left, 1)
    ]


def _build_needs(checkpoint: Checkpoint, name: str, store: Store) -> _Needs:
    def wants(group: Sequence[PlannedArtifact]) -> MemoryNeed:
        variants = [artifact.variant for artifact in group]
        bound = backend(name).build_memory(
            checkpoint.architecture, checkpoint.weight_bytes, variants
        )
        return memory_need(store, _kind("build", checkpoint, name, group, store), bound)

    return wants


def _judge_needs(checkpoint: Checkpoint, name: str, evaluation: Evaluation, store: Store) -> _Needs:
    def wants(group: Sequence[PlannedArtifact]) -> MemoryNeed:
        variants = [artifact.variant for artifact in group]
        bound = backend(name).judge_memory(
            checkpoint.architecture, variants, evaluation.window_tokens
        )
        kind = _kind("measure", checkpoint, name, group, store)
        tokens = [evaluation.windows, evaluation.window_tokens, evaluation.decode_tokens]
        return memory_need(store, {**kind, "evaluation": tokens}, bound)

    return wants


def _kind(
    step: str, checkpoint: Checkpoint, name: str, artifacts: Iterable[PlannedArtifact], store: Store
) -> dict[str, object]:
    """Return what decides the memory of a step, whatever the weights are."""
    variants = [artifact.variant.model_dump(mode="json") for artifact in artifacts]
    return {
        "step": step,
        "builder": step_digest(step, name, store),
        "architecture": checkpoint.architecture.to_json(),
        "variants": sorted(variants, key=content_key),
    }
