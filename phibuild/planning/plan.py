"""What a plan consists of: cells with estimates, artifacts, and the steps that make them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from phibuild.planning.matrix import Matrix
from phibuild.planning.steps import (
    BuildStep,
    CalibrationStep,
    MeasureStep,
    OriginalStep,
    PlannedArtifact,
    ReferenceStep,
    SourceStep,
    Step,
)
from phibuild.schema import Cell, Evaluation
from phibuild.store.store import ARTIFACTS, MEASURES, REFERENCES


@dataclass(frozen=True)
class PlanCell:
    """A cell with its estimates; without a variant it is skipped."""

    cell: Cell
    artifact: PlannedArtifact | None
    device_memory_bytes: int | None
    budget: int

    @property
    def fits_budget(self) -> bool | None:
        if self.device_memory_bytes is None:
            return None
        return self.device_memory_bytes <= self.budget


@dataclass(frozen=True)
class Refusal:
    """A step, or its part for some artifacts, that needs more memory than it can ever be given.
    It `stops` the build or the measure of `artifacts` (keys), for `reason`."""

    step: str
    stops: str
    artifacts: tuple[str, ...]
    memory_bytes: int
    reason: str
    remedy: str


@dataclass(frozen=True)
class Plan:
    """All of a run. `source_digests`: model -> digest, absent if it is not known yet; `sources`,
    `references` and `calibrations` are those that other steps need, cached or not; `refusals`: what
    can never have the memory that it needs."""

    matrix: Matrix
    evaluation: Evaluation
    cells: tuple[PlanCell, ...]
    artifacts: tuple[PlannedArtifact, ...]
    builds: tuple[BuildStep, ...]
    measures: tuple[MeasureStep, ...]
    sources: tuple[SourceStep, ...]
    references: tuple[ReferenceStep, ...]
    calibrations: tuple[CalibrationStep, ...]
    source_digests: Mapping[str, str]
    refusals: tuple[Refusal, ...] = ()

    @property
    def steps(self) -> tuple[Step, ...]:
        """What there is to do, in the order of its dependences."""
        return (*self._missing, *self.builds, *self.measures)

    @property
    def originals(self) -> tuple[OriginalStep, ...]:
        """The steps of the original, in the order of their dependences."""
        return (*self.sources, *self.references, *self.calibrations)

    @property
    def _missing(self) -> tuple[OriginalStep, ...]:
        return tuple(step for step in self.originals if not step.cached)

    def needs(self, step: Step) -> frozenset[str]:
        """Return the ids of the steps that must have ended before a step starts."""
        return step.needs((*self.originals, *self.builds, *self.measures))

    def only(self, step: Step) -> Plan:
        """Return the plan cut down to what one of its steps has to know."""
        return replace(
            self,
            matrix=replace(self.matrix, cells=(), baselines={}),
            cells=(),
            artifacts=step.artifacts,
            builds=(),
            measures=(),
            refusals=(),
        )

    def source_of(self, model: str) -> SourceStep | None:
        """Return the source step of a model, None if no step needs it."""
        return next((step for step in self.sources if step.model == model), None)

    def reference_of(self, model: str) -> ReferenceStep | None:
        """Return the reference step of a model, None if no step needs it."""
        return next((step for step in self.references if step.model == model), None)

    @property
    def toolchains(self) -> tuple[str, ...]:
        """Backends whose environments the steps need."""
        steps: tuple[Step, ...] = (*self.builds, *self.measures, *self._missing)
        return tuple(dict.fromkeys(step.backend for step in steps))

    @property
    def store_keys(self) -> dict[str, list[str]]:
        """Entries of the store that the run uses, by kind."""
        originals = {key for step in self.originals for key in step.makes}
        originals.update(key for artifact in self.artifacts for key in artifact.inputs)
        return {
            ARTIFACTS: sorted(artifact.key for artifact in self.artifacts),
            MEASURES: sorted(a.measure_key for a in self.artifacts if a.measure_key),
            REFERENCES: sorted(originals),
        }

    @property
    def disk_bytes(self) -> int:
        """Bytes of all that is not there yet: artifacts, and the codes that some are made of."""
        built = {artifact.key for step in self.builds for artifact in step.artifacts}
        made = sum(
            artifact.estimate.artifact_bytes
            for artifact in self.artifacts
            if not artifact.cached and (artifact.cells or artifact.key in built)
        )
        return made + sum(step.disk_bytes for step in self.calibrations if not step.cached)

    @property
    def peak_build_memory(self) -> int:
        """Largest memory of a single build step."""
        return max((step.memory_bytes for step in self.builds), default=0)
