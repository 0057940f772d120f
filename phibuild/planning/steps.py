"""The steps that make artifacts and judge them. Each says itself what it needs, what it makes and
which backend runs it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

from phibuild.planning.memory import MemoryNeed
from phibuild.planning.sizes import ArtifactEstimate
from phibuild.schema import Calibration, Judging, Variant
from phibuild.store.store import Store
from phibuild.worker.grids import Grid
from phibuild.worker.stopping import Compared, Limits

REFERENCE_BACKEND = "pytorch"
"""The backend that runs the original."""


@dataclass(frozen=True)
class PlannedArtifact:
    """One artifact to be there at the end: `key` in the store, and the cells that want it;
    `activations` is the key of what is taken of the original for it (its variant's calibration),
    `cache_ranges` that of what scales its KV cache, `sensitivity` that of what chooses the types of
    its tensors, `limits` those of its cells' gates, `comparisons` those with a baseline, `judging`
    how it is judged here, None where nothing is, `tokens` by how many of each window, None by all;
    `stand_in` is the key of the artifact that is
    opened for that, where its own cannot be. One without cells is there to be opened for another.
    """

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
    tokens: int | None = None
    stand_in: str | None = None
    cache_ranges: str | None = None
    sensitivity: str | None = None
    limits: Limits = field(default_factory=dict)
    comparisons: tuple[Compared, ...] = ()

    @property
    def opened(self) -> str:
        """The key of the artifact that is opened when it is judged."""
        return self.stand_in or self.key

    @property
    def inputs(self) -> tuple[str, ...]:
        """Keys of all that is taken of the original for it."""
        keys = (self.activations, self.cache_ranges, self.sensitivity)
        return tuple(key for key in keys if key)


class Step(ABC):
    """What one run of a backend's worker does for one model."""

    kind: ClassVar[str]
    takes_machine: ClassVar[bool] = False
    """Whether it gets all cores: its figures of speed are reported."""
    is_retried: ClassVar[bool] = False
    """Whether it is run again after a crash even if it is for one thing alone."""
    failing: ClassVar[str] = ""
    """How the reason begins why there is nothing of it."""
    model: str
    backend: str
    need: MemoryNeed
    artifacts: tuple[PlannedArtifact, ...]
    """Those that it builds or judges; () for a step of the original."""

    @property
    @abstractmethod
    def id(self) -> str:
        """Its name in the run."""

    @property
    def memory_bytes(self) -> int:
        return self.need.bytes

    def threads(self, cores: int) -> int:
        """Return the threads that it gets of a machine's cores: two others beside it get as many,
        unless it is timed."""
        return cores if self.takes_machine else max(1, cores // 2)

    @property
    @abstractmethod
    def makes(self) -> Mapping[str, str]:
        """What it puts into the store: key there -> the artifact's key (a step of the original: its
        own)."""

    @abstractmethod
    def is_made(self, store: Store, key: str) -> bool:
        """Return whether one of the things that it makes is in the store."""

    @abstractmethod
    def needs(self, steps: Iterable[Step]) -> frozenset[str]:
        """Return the ids of those of a plan's steps that must have ended before it starts."""

    def part_for(self, keys: Collection[str]) -> Self:
        """Return the step for those of its artifacts alone whose results are in `keys`."""
        return self


@dataclass(frozen=True)
class BackendStep(Step):
    """One run of a backend's worker for artifacts of one model. `part` tells steps apart that
    memory keeps from being one (0: there is one)."""

    model: str
    backend: str
    artifacts: tuple[PlannedArtifact, ...]
    need: MemoryNeed
    part: int = 0

    @property
    def id(self) -> str:
        part = f".{self.part}" if self.part else ""
        return f"{self.kind}.{self.model}.{self.backend}{part}"

    def part_for(self, keys: Collection[str]) -> Self:
        wanted = {artifact for key, artifact in self.makes.items() if key in keys}
        return replace(self, artifacts=tuple(a for a in self.artifacts if a.key in wanted))


class BuildStep(BackendStep):
    """One pass over the checkpoint, for the artifacts that are not there yet."""

    kind = "build"

    @property
    def makes(self) -> Mapping[str, str]:
        return {artifact.key: artifact.key for artifact in self.artifacts}

    def is_made(self, store: Store, key: str) -> bool:
        return store.artifact(key) is not None

    def needs(self, steps: Iterable[Step]) -> frozenset[str]:
        """The source, and what is taken of the original for its artifacts."""
        inputs = {key for artifact in self.artifacts for key in artifact.inputs}
        return frozenset(
            step.id
            for step in steps
            if _is_source_of(step, self.model) or inputs & step.makes.keys()
        )


class MeasureStep(BackendStep):
    """Judging of the artifacts that have not been judged yet."""

    kind = "measure"
    takes_machine = True
    failing = "it was built, but could not be judged: "

    @property
    def makes(self) -> Mapping[str, str]:
        return {artifact.measure_key or "": artifact.key for artifact in self.artifacts}

    def is_made(self, store: Store, key: str) -> bool:
        return store.measure(key) is not None

    def needs(self, steps: Iterable[Step]) -> frozenset[str]:
        """The original's logits, and the builds of its artifacts, or of what is opened for them."""
        keys = {key for artifact in self.artifacts for key in (artifact.key, artifact.opened)}
        builds = {s.id for s in steps if s.kind == BuildStep.kind and keys & s.makes.keys()}
        return frozenset({f"{ReferenceStep.kind}.{self.model}", *builds})


@dataclass(frozen=True)
class OriginalStep(Step):
    """A step that runs the original, or reads it for all others; what it leaves is a folder under
    `key` in the store, or several folders. `cached`: all of it is there."""

    failing = "the original could not be run: "
    backend = REFERENCE_BACKEND
    artifacts = ()
    model: str
    key: str
    need: MemoryNeed
    cached: bool

    @property
    def id(self) -> str:
        return f"{self.kind}.{self.model}"

    @property
    def makes(self) -> Mapping[str, str]:
        return {self.key: self.key}

    def is_made(self, store: Store, key: str) -> bool:
        return store.reference(key) is not None

    def needs(self, steps: Iterable[Step]) -> frozenset[str]:
        """What the source is."""
        return frozenset(step.id for step in steps if _is_source_of(step, self.model))


@dataclass(frozen=True)
class SourceStep(OriginalStep):
    """What the source is, before anything is made of it: Transformers' own reading against
    phibuild's, the facts of its tokenizer, its weights where they are not in its files as they are
    used. `layers` are those that the witness runs (None: all); `nonfinite` says that weights of the
    source are NaN or infinite, and so what is made of them."""

    kind = "source"
    is_retried = True  # it is short, and every cell needs it
    failing = "the source: "
    layers: tuple[int, ...] | None = None
    nonfinite: bool = False

    def needs(self, steps: Iterable[Step]) -> frozenset[str]:
        return frozenset()


@dataclass(frozen=True)
class ReferenceStep(OriginalStep):
    """The original's logits over the held-out text."""

    kind = "reference"


@dataclass(frozen=True)
class CalibrationStep(OriginalStep):
    """A step that runs the original over a calibration text. Those of one model differ by text and
    tokens."""

    calibration: Calibration
    disk_bytes: int = 0
    """Bytes of what it is to leave, where that is as large as an artifact."""

    @property
    def id(self) -> str:
        return f"{self.kind}.{self.model}.{self.key[:8]}"


@dataclass(frozen=True)
class ActivationsStep(CalibrationStep):
    """How large the inputs of the original's linear layers are over a calibration text."""

    kind = "activations"


@dataclass(frozen=True)
class SensitivityStep(CalibrationStep):
    """What the original loses with each of its matrices alone on a grid."""

    kind = "sensitivity"


@dataclass(frozen=True)
class QuantizeStep(CalibrationStep):
    """Weights of the original on the `grids` of formats, by GPTQ: key in the store -> grid. `key`
    is that of what one calibration has in common for all of them, the states that a run goes on
    from."""

    kind = "quantize"
    grids: Mapping[str, Grid] = field(default_factory=dict)

    @property
    def makes(self) -> Mapping[str, str]:
        return {key: key for key in self.grids}

    def part_for(self, keys: Collection[str]) -> Self:
        grids = {key: grid for key, grid in self.grids.items() if key in keys}
        return replace(self, grids=grids)


def _is_source_of(step: Step, model: str) -> bool:
    return step.kind == SourceStep.kind and step.model == model
