"""Cells to steps: what has to be built, judged and installed, what is there already, what it takes.

Needs config.json and safetensors headers only. Cells that need the same variant of the same model
share its key, hence its artifact and its measurement.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from phibuild import __version__
from phibuild.backends.registry import backend
from phibuild.catalogue import DATA
from phibuild.checkpoint import Checkpoint, combine_digests, digest_files
from phibuild.errors import ConfigError, Problem
from phibuild.estimate import ArtifactEstimate, device_memory, estimate_artifact
from phibuild.matrix import Matrix
from phibuild.schema import Cell, Evaluation, Variant
from phibuild.store import Store, content_key, file_sha256
from phibuild.toolchains import BACKENDS as BACKENDS_FOLDER
from phibuild.toolchains import toolchain

_PACKAGE = Path(__file__).resolve().parent
_SHARED_CODE = (
    "worker.py",
    "architecture.py",
    "safetensors_io.py",
    "readme.py",
    "backends/companions.py",
)
_JUDGE_CODE = ("evaluate/judge.py", "evaluate/metrics.py", "worker.py")
_REFERENCE_BACKEND = "pytorch"


@dataclass(frozen=True)
class Artifact:
    """One artifact to be there at the end: `key` in the store, and the cells that want it."""

    key: str
    measure_key: str | None
    model: str
    variant: Variant
    estimate: ArtifactEstimate
    cells: tuple[str, ...]
    cached: bool
    judged: bool


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
class BuildStep:
    """One pass of a backend over one checkpoint, for the artifacts that are not there yet."""

    model: str
    backend: str
    artifacts: tuple[Artifact, ...]
    memory_bytes: int

    @property
    def id(self) -> str:
        return f"build.{self.model}.{self.backend}"


@dataclass(frozen=True)
class MeasureStep:
    """Judging of a backend's artifacts of one model."""

    model: str
    backend: str
    artifacts: tuple[Artifact, ...]
    memory_bytes: int

    @property
    def id(self) -> str:
        return f"measure.{self.model}.{self.backend}"


@dataclass(frozen=True)
class ReferenceStep:
    """The original's logits over the held-out text."""

    model: str
    key: str
    memory_bytes: int
    cached: bool

    @property
    def id(self) -> str:
        return f"reference.{self.model}"


@dataclass(frozen=True)
class Plan:
    """All of a run. `source_digests`: model -> digest, absent if it is not known yet."""

    matrix: Matrix
    evaluation: Evaluation
    cells: tuple[PlanCell, ...]
    artifacts: tuple[Artifact, ...]
    builds: tuple[BuildStep, ...]
    measures: tuple[MeasureStep, ...]
    references: tuple[ReferenceStep, ...]
    source_digests: Mapping[str, str]

    @property
    def steps(self) -> tuple[ReferenceStep | BuildStep | MeasureStep, ...]:
        """What there is to do, in the order of its dependences."""
        originals = tuple(step for step in self.references if not step.cached)
        return (*originals, *self.builds, *self.measures)

    @property
    def toolchains(self) -> tuple[str, ...]:
        """Backends whose environments the steps need."""
        steps: list[BuildStep | MeasureStep] = [*self.builds, *self.measures]
        names = [step.backend for step in steps]
        if any(not reference.cached for reference in self.references):
            names.append(_REFERENCE_BACKEND)
        return tuple(dict.fromkeys(names))

    @property
    def disk_bytes(self) -> int:
        """Bytes of all artifacts that are not there yet."""
        return sum(a.estimate.artifact_bytes for a in self.artifacts if not a.cached)

    @property
    def peak_build_memory(self) -> int:
        """Largest memory of a single build step."""
        return max((step.memory_bytes for step in self.builds), default=0)


def make_plan(
    matrix: Matrix, evaluation: Evaluation, store: Store, *, read_weights: bool = False
) -> Plan:
    """Return the plan. With `read_weights` checkpoints are hashed where that is not remembered;
    without, those are planned as if nothing of them were there."""
    text_digest = file_sha256(evaluation_text(evaluation)) if evaluation.enabled else ""
    digests: dict[str, str] = {}
    for name, checkpoint in matrix.models.items():
        digest = source_digest(checkpoint, store, read_weights=read_weights)
        if digest:
            digests[name] = digest
    references = {
        name: _reference(checkpoint, digests.get(name), evaluation, text_digest, store)
        for name, checkpoint in matrix.models.items()
        if evaluation.enabled
    }
    artifacts = _artifacts(matrix, digests, references, store)
    by_cell = {cell: artifact for artifact in artifacts for cell in artifact.cells}
    cells = tuple(_plan_cell(cell, by_cell.get(cell.id), matrix) for cell in matrix.cells)
    builds, measures = _steps(matrix, artifacts)
    needed = {step.model for step in measures}
    return Plan(
        matrix=matrix,
        evaluation=evaluation,
        cells=cells,
        artifacts=artifacts,
        builds=builds,
        measures=measures if evaluation.enabled else (),
        references=tuple(step for name, step in references.items() if name in needed),
        source_digests=digests,
    )


def evaluation_text(evaluation: Evaluation) -> Path:
    """Return the text that artifacts are judged on. Raises ConfigError if it is not there."""
    if evaluation.text is None:
        return DATA / "phi3-tiny-trained" / "heldout.txt"
    path = Path(evaluation.text).expanduser().resolve()
    if not path.is_file():
        raise ConfigError(Problem("evaluation.text: no such file", str(path)))
    return path


def source_digest(checkpoint: Checkpoint, store: Store, *, read_weights: bool) -> str | None:
    """Return the digest of a checkpoint's files; None if it is not known and not to be read."""
    if checkpoint.folder is None:
        return None
    digests: dict[str, str] = {}
    for path in digest_files(checkpoint.folder):
        digest = store.file_digest(path) if read_weights else store.known_digest(path)
        if digest is None:
            return None
        digests[path.name] = digest
    return combine_digests(digests)


@cache
def _code_digest(files: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for name in files:
        digest.update(name.encode() + b"\0" + (_PACKAGE / name).read_bytes())
    return digest.hexdigest()


@cache
def builder_digest(name: str) -> str:
    """Return the digest of what builds a backend's artifacts: its code and its locked toolchain."""
    code = sorted(
        path.relative_to(_PACKAGE).as_posix() for path in (BACKENDS_FOLDER / name).glob("*.py")
    )
    return content_key(
        {"code": _code_digest((*code, *_SHARED_CODE)), "toolchain": toolchain(name).digest}
    )


def artifact_key(source: str, variant: Variant, model: str) -> str:
    """Return the content key of an artifact. The model's name is in some formats' metadata."""
    return content_key(
        {
            "source": source,
            "model": model,
            "variant": variant.model_dump(mode="json"),
            "builder": builder_digest(variant.backend),
            "phibuild": __version__,
        }
    )


def _reference(
    checkpoint: Checkpoint,
    digest: str | None,
    evaluation: Evaluation,
    text_digest: str,
    store: Store,
) -> ReferenceStep:
    key = content_key(
        {
            "source": digest or checkpoint.reference,
            "text": text_digest,
            "windows": evaluation.windows,
            "window_tokens": evaluation.window_tokens,
            "max_bytes": evaluation.max_reference_bytes,
            "builder": builder_digest(_REFERENCE_BACKEND),
        }
    )
    architecture = checkpoint.architecture
    # fp32 weights, a window's logits several times over, and torch itself.
    logits = 4 * evaluation.window_tokens * architecture.vocab_size
    memory = 4 * architecture.parameters + checkpoint.weight_bytes + 6 * logits + (900 << 20)
    return ReferenceStep(
        checkpoint.name, key, memory, digest is not None and store.reference(key) is not None
    )


def _artifacts(
    matrix: Matrix,
    digests: Mapping[str, str],
    references: Mapping[str, ReferenceStep],
    store: Store,
) -> tuple[Artifact, ...]:
    groups: dict[tuple[str, str], list[Cell]] = {}
    names: dict[int, str] = {}
    for cell in matrix.cells:
        if cell.variant is not None:
            # Cells of one square share the variant object; its JSON is made once.
            name = names.get(id(cell.variant)) or content_key(cell.variant.model_dump(mode="json"))
            names[id(cell.variant)] = name
            groups.setdefault((cell.model, name), []).append(cell)
    artifacts = []
    for (model, _), cells in groups.items():
        variant = cells[0].variant
        assert variant is not None  # grouped above
        digest = digests.get(model)
        key = artifact_key(digest or matrix.models[model].reference, variant, model)
        reference = references.get(model)
        measure_key = (
            content_key(
                {
                    "artifact": key,
                    "reference": reference.key,
                    "judge": _code_digest(_JUDGE_CODE),
                }
            )
            if reference
            else None
        )
        cached = digest is not None and store.artifact(key) is not None
        artifacts.append(
            Artifact(
                key=key,
                measure_key=measure_key,
                model=model,
                variant=variant,
                estimate=estimate_artifact(backend(variant.backend), matrix.models[model], variant),
                cells=tuple(cell.id for cell in cells),
                cached=cached,
                judged=bool(cached and measure_key and store.measure(measure_key)),
            )
        )
    return tuple(artifacts)


def _plan_cell(cell: Cell, artifact: Artifact | None, matrix: Matrix) -> PlanCell:
    device = matrix.devices[cell.device]
    if artifact is None or cell.variant is None:
        return PlanCell(cell, None, None, device.budget)
    memory = device_memory(
        backend(cell.backend),
        matrix.models[cell.model].architecture,
        cell.variant,
        device,
        artifact.estimate.weight_bytes,
    )
    return PlanCell(cell, artifact, memory, device.budget)


def _steps(
    matrix: Matrix, artifacts: Iterable[Artifact]
) -> tuple[tuple[BuildStep, ...], tuple[MeasureStep, ...]]:
    builds: dict[tuple[str, str], list[Artifact]] = {}
    measures: dict[tuple[str, str], list[Artifact]] = {}
    for artifact in artifacts:
        place = (artifact.model, artifact.variant.backend)
        if not artifact.cached:
            builds.setdefault(place, []).append(artifact)
        if not artifact.judged:
            measures.setdefault(place, []).append(artifact)
    build_steps = tuple(
        BuildStep(
            model,
            name,
            tuple(group),
            backend(name).build_memory(
                matrix.models[model].architecture,
                matrix.models[model].weight_bytes,
                [artifact.variant for artifact in group],
            ),
        )
        for (model, name), group in builds.items()
    )
    measure_steps = tuple(
        MeasureStep(model, name, tuple(group), _judging_memory(matrix.models[model]))
        for (model, name), group in measures.items()
    )
    return build_steps, measure_steps


def _judging_memory(checkpoint: Checkpoint) -> int:
    """Bound of a runtime's memory: the weights as fp32, as some runtimes unpack them, and 1 GiB
    for the runtime and a window's logits."""
    return 4 * checkpoint.architecture.parameters + (1 << 30)
