"""What a plan consists of: artifacts, cells with estimates, and the steps that make them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from phibuild.planning.matrix import Matrix
from phibuild.planning.memory import Demand
from phibuild.planning.sizes import ArtifactEstimate
from phibuild.schema import Calibration, Cell, Evaluation, Judging, Variant
from phibuild.store.store import ARTIFACTS, MEASURES, REFERENCES

REFERENCE_BACKEND = "pytorch"
"""The backend that runs the original."""


@dataclass(frozen=True)
class Artifact:
    """One artifact to be there at the end: `key` in the store, and the cells that want it;
    `activations` is the key of the original's activations that it is built from, `judging` how it
    is judged here, None where nothing is."""

    key: str
    activations: str | None
    measure_key: str | None
    model: str
    variant: Variant
    estimate: ArtifactEstimate
    cells: tuple[str, ...]
    cached: bool
    judged: bool
    judging: Judging | None = None


@dataclass(frozen=True)
class PlanCell:
    """A cell with its estimates; without a variant it is skipped."""

    cell: Cell
    artifact: Artifact | None
    device_memory_bytes: int | None
    budget: int

    @property
    def fits_budget(self) -> bool | None:
        if self.device_memory_bytes is None:
            return None
        return self.device_memory_bytes <= self.budget


@dataclass(frozen=True)
class BackendStep:
    """One run of a backend's worker for artifacts of one model. `part` tells steps apart that
    memory keeps from being one (0: there is one)."""

    kind: ClassVar[str]
    model: str
    backend: str
    artifacts: tuple[Artifact, ...]
    demand: Demand
    part: int = 0

    @property
    def id(self) -> str:
        part = f".{self.part}" if self.part else ""
        return f"{self.kind}.{self.model}.{self.backend}{part}"

    @property
    def memory_bytes(self) -> int:
        return self.demand.bytes


class BuildStep(BackendStep):
    """One pass over the checkpoint, for the artifacts that are not there yet."""

    kind = "build"


class MeasureStep(BackendStep):
    """Judging of the artifacts that have not been judged yet."""

    kind = "measure"


@dataclass(frozen=True)
class OriginalStep:
    """A step that runs the original, or reads it for all others; what it leaves is a folder under
    `key` in the store."""

    kind: ClassVar[str]
    model: str
    key: str
    demand: Demand
    cached: bool

    @property
    def id(self) -> str:
        return f"{self.kind}.{self.model}"

    @property
    def memory_bytes(self) -> int:
        return self.demand.bytes


@dataclass(frozen=True)
class SourceStep(OriginalStep):
    """What the source is, before anything is made of it: Transformers' own reading against
    phibuild's, the facts of its tokenizer, its weights where they are not in its files as they are
    used. `layers` are those that the witness runs (None: all); `nonfinite` says that weights of the
    source are NaN or infinite, and so what is made of them."""

    kind = "source"
    layers: tuple[int, ...] | None = None
    nonfinite: bool = False


@dataclass(frozen=True)
class ReferenceStep(OriginalStep):
    """The original's logits over the held-out text."""

    kind = "reference"


@dataclass(frozen=True)
class ActivationsStep(OriginalStep):
    """How large the inputs of the original's linear layers are over a calibration text. Steps of
    one model differ by text and tokens."""

    kind = "activations"
    calibration: Calibration

    @property
    def id(self) -> str:
        return f"activations.{self.model}.{self.key[:8]}"


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
    `references` and `activations` are those that other steps need, cached or not; `refusals`: what
    can never have the memory that it needs."""

    matrix: Matrix
    evaluation: Evaluation
    cells: tuple[PlanCell, ...]
    artifacts: tuple[Artifact, ...]
    builds: tuple[BuildStep, ...]
    measures: tuple[MeasureStep, ...]
    sources: tuple[SourceStep, ...]
    references: tuple[ReferenceStep, ...]
    activations: tuple[ActivationsStep, ...]
    source_digests: Mapping[str, str]
    refusals: tuple[Refusal, ...] = ()

    @property
    def steps(self) -> tuple[OriginalStep | BackendStep, ...]:
        """What there is to do, in the order of its dependences."""
        return (*self._missing, *self.builds, *self.measures)

    @property
    def originals(self) -> tuple[OriginalStep, ...]:
        """The steps of the original, in the order of their dependences."""
        return (*self.sources, *self.references, *self.activations)

    @property
    def _missing(self) -> tuple[OriginalStep, ...]:
        return tuple(step for step in self.originals if not step.cached)

    def source_of(self, model: str) -> SourceStep | None:
        """Return the source step of a model, None if no step needs it."""
        return next((step for step in self.sources if step.model == model), None)

    def reference_of(self, model: str) -> ReferenceStep | None:
        """Return the reference step of a model, None if no step needs it."""
        return next((step for step in self.references if step.model == model), None)

    @property
    def toolchains(self) -> tuple[str, ...]:
        """Backends whose environments the steps need."""
        steps: list[BackendStep] = [*self.builds, *self.measures]
        names = [step.backend for step in steps]
        if self._missing:
            names.append(REFERENCE_BACKEND)
        return tuple(dict.fromkeys(names))

    @property
    def store_keys(self) -> dict[str, list[str]]:
        """Entries of the store that the run uses, by kind."""
        originals = {step.key for step in self.originals}
        originals.update(a.activations for a in self.artifacts if a.activations)
        return {
            ARTIFACTS: sorted(artifact.key for artifact in self.artifacts),
            MEASURES: sorted(a.measure_key for a in self.artifacts if a.measure_key),
            REFERENCES: sorted(originals),
        }

    @property
    def disk_bytes(self) -> int:
        """Bytes of all artifacts that are not there yet."""
        return sum(a.estimate.artifact_bytes for a in self.artifacts if not a.cached)

    @property
    def peak_build_memory(self) -> int:
        """Largest memory of a single build step."""
        return max((step.memory_bytes for step in self.builds), default=0)
