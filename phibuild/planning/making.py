"""Cells to steps: what has to be built, judged and installed, what is there already, what it takes.

Needs config.json and safetensors headers only. Cells that need the same variant of the same model
share its key, hence its artifact and its measurement.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from phibuild.backends.pytorch.memory import (
    merge_memory,
    reference_memory,
    source_memory,
    witness_layers,
)
from phibuild.backends.registry import backend
from phibuild.checkpoints.facts import Checkpoint
from phibuild.config.catalogue import DATA
from phibuild.errors import ConfigError, Problem, SourceError
from phibuild.planning.baselines import judged_comparisons
from phibuild.planning.calibrations import calibration_steps, is_there
from phibuild.planning.code import step_digest
from phibuild.planning.fit import Originals, fit_steps
from phibuild.planning.judged import how_judged, judged_tokens
from phibuild.planning.keys import Keys, measure_key, nonfinite_weights, source_digest
from phibuild.planning.matrix import Matrix
from phibuild.planning.memory import memory_need
from phibuild.planning.mixing import read_losses, with_types
from phibuild.planning.plan import Plan, PlanCell
from phibuild.planning.sizes import device_memory, estimate_artifact
from phibuild.planning.steps import (
    REFERENCE_BACKEND,
    PlannedArtifact,
    ReferenceStep,
    SourceStep,
)
from phibuild.schema import Cell, Evaluation, Variant
from phibuild.store.store import Store, content_key
from phibuild.system.files import file_sha256


def make_plan(
    matrix: Matrix,
    evaluation: Evaluation,
    store: Store,
    *,
    read_weights: bool = False,
    memory_limit: int | None = None,
    allow_nonfinite: bool = False,
) -> Plan:
    """Return the plan. With `read_weights` checkpoints are hashed where that is not remembered;
    without, those are planned as if nothing of them were there. Steps that need more than
    `memory_limit` bytes are refused (None: none is). Raises SourceError for a checkpoint with
    weights that are infinite or NaN, unless `allow_nonfinite`."""
    text_digest = file_sha256(evaluation_text(evaluation)) if evaluation.enabled else ""
    digests: dict[str, str] = {}
    for name, checkpoint in matrix.models.items():
        digest = source_digest(checkpoint, store, read_weights=read_weights)
        if digest:
            digests[name] = digest
    nonfinite = {
        name: list(nonfinite_weights(checkpoint, store))
        for name, checkpoint in matrix.models.items()
    }
    if any(nonfinite.values()) and not allow_nonfinite:
        raise SourceError(*(problem for found in nonfinite.values() for problem in found))
    keys = {
        name: Keys(digests.get(name), checkpoint, store)
        for name, checkpoint in matrix.models.items()
    }
    sources = {
        name: _source(checkpoint, keys[name], bool(nonfinite[name]), store, memory_limit)
        for name, checkpoint in matrix.models.items()
    }
    references = {
        name: _reference(checkpoint, keys[name], evaluation, text_digest, store)
        for name, checkpoint in matrix.models.items()
        if evaluation.enabled
    }
    calibrations = calibration_steps(matrix, keys, store)
    artifacts = _artifacts(matrix, keys, references, evaluation, store)
    by_cell = {cell: artifact for artifact in artifacts for cell in artifact.cells}
    cells = tuple(_plan_cell(cell, by_cell.get(cell.id), matrix) for cell in matrix.cells)
    originals = Originals(
        sources, references, {key: step for step in calibrations for key in step.makes}
    )
    steps = fit_steps(matrix, artifacts, originals, evaluation, store, memory_limit)
    needed = {step.model for step in steps.measures}
    built = [artifact for step in steps.builds for artifact in step.artifacts]
    inputs = {key for artifact in built for key in artifact.inputs}
    read = {step.model for step in steps.builds}
    read |= {name for name in needed if not references[name].cached}
    return Plan(
        matrix=matrix,
        evaluation=evaluation,
        cells=cells,
        artifacts=artifacts,
        builds=tuple(steps.builds),
        measures=tuple(steps.measures),
        sources=tuple(step for name, step in sources.items() if name in read),
        references=tuple(step for name, step in references.items() if name in needed),
        calibrations=tuple(
            step.part_for(inputs) for step in calibrations if inputs & step.makes.keys()
        ),
        source_digests=digests,
        refusals=tuple(steps.refusals),
    )


def evaluation_text(evaluation: Evaluation) -> Path:
    """Return the text that artifacts are judged on. Raises ConfigError if it is not there."""
    if evaluation.text is None:
        return DATA / "phi3-tiny-trained" / "heldout.txt"
    path = Path(evaluation.text).expanduser().resolve()
    if not path.is_file():
        raise ConfigError(Problem("evaluation.text: no such file", str(path)))
    return path


def _source(
    checkpoint: Checkpoint,
    keys: Keys,
    nonfinite: bool,
    store: Store,
    memory_limit: int | None,
) -> SourceStep:
    architecture = checkpoint.architecture
    layers = witness_layers(architecture, memory_limit or 0)
    kind = {
        "step": "source",
        "builder": step_digest("source", REFERENCE_BACKEND, store),
        "architecture": architecture.to_json(),
        "layers": layers,
        "rank": checkpoint.adapter.rank if checkpoint.adapter else None,
    }
    bound = source_memory(architecture, layers)
    if checkpoint.adapter:
        bound = max(bound, merge_memory(architecture, checkpoint.adapter.rank))
    memory = memory_need(store, kind, bound)
    cached = is_there(keys.source, keys, store)
    return SourceStep(checkpoint.name, keys.source, memory, cached, layers, nonfinite)


def _reference(
    checkpoint: Checkpoint,
    keys: Keys,
    evaluation: Evaluation,
    text_digest: str,
    store: Store,
) -> ReferenceStep:
    key = keys.reference(evaluation, text_digest)
    architecture = checkpoint.architecture
    kind = {
        "step": "reference",
        "builder": step_digest("reference", REFERENCE_BACKEND, store),
        "architecture": architecture.to_json(),
        "tokens": [evaluation.windows, evaluation.window_tokens],
    }
    bound = reference_memory(architecture, evaluation.windows, evaluation.window_tokens)
    cached = is_there(key, keys, store)
    return ReferenceStep(checkpoint.name, key, memory_need(store, kind, bound), cached)


def _artifacts(
    matrix: Matrix,
    keys: Mapping[str, Keys],
    references: Mapping[str, ReferenceStep],
    evaluation: Evaluation,
    store: Store,
) -> tuple[PlannedArtifact, ...]:
    artifacts = []
    for model, variant, cells in _groups(matrix, judged=evaluation.enabled):
        key, inputs, ranges, losses = _artifact_keys(variant, keys[model])
        spec, architecture = backend(variant.backend), matrix.models[model].architecture
        other = spec.stand_in(variant)
        if losses:
            folder = store.reference(losses) if keys[model].digest else None
            known = read_losses(folder) if folder else None
            variant = with_types(spec, matrix.models[model], variant, known) or variant
        reference, limits = references.get(model), _limits(cells)
        compared = judged_comparisons(cells, matrix.baselines, key)
        judging, measured, tokens = None, None, None
        if reference and cells:
            judging = how_judged(spec, architecture, variant, evaluation)
        if reference and judging and judging.how != "no":
            tokens = judged_tokens(spec, architecture, variant, evaluation)
            decides = {**limits, **({"comparisons": compared} if compared else {})}
            measured = measure_key(
                key, reference.key, variant.backend, evaluation, decides, store, tokens
            )
        cached = keys[model].digest is not None and store.artifact(key) is not None
        artifacts.append(
            PlannedArtifact(
                key=key,
                activations=inputs,
                measure_key=measured,
                model=model,
                variant=variant,
                estimate=estimate_artifact(spec, matrix.models[model], variant),
                cells=tuple(cell.id for cell in cells),
                cached=cached,
                judged=bool(cached and measured and store.measure(measured)),
                judging=judging,
                tokens=tokens,
                stand_in=_artifact_keys(other, keys[model])[0] if measured and other else None,
                cache_ranges=ranges,
                sensitivity=losses,
                limits=limits,
                comparisons=compared,
            )
        )
    return tuple(artifacts)


def _groups(matrix: Matrix, *, judged: bool) -> Iterator[tuple[str, Variant, list[Cell]]]:
    """Yield each model and variant of a matrix and the cells that want it; where they are judged,
    what is opened for others, too, with no cells where none wants it."""
    groups: dict[tuple[str, str], tuple[Variant, list[Cell]]] = {}
    names: dict[int, str] = {}
    for cell in matrix.cells:
        if cell.variant is not None:
            # Cells of one request share the variant object; its JSON is made once.
            name = names.get(id(cell.variant)) or _variant_key(cell.variant)
            names[id(cell.variant)] = name
            groups.setdefault((cell.model, name), (cell.variant, []))[1].append(cell)
    for (model, _), (variant, _) in [*groups.items()] if judged else ():
        if other := backend(variant.backend).stand_in(variant):
            groups.setdefault((model, _variant_key(other)), (other, []))
    for (model, _), (variant, cells) in groups.items():
        yield model, variant, cells


def _variant_key(variant: Variant) -> str:
    return content_key(variant.model_dump(mode="json"))


def _artifact_keys(variant: Variant, keys: Keys) -> tuple[str, str | None, str | None, str | None]:
    """Return the key of a variant's artifact, and those of what is taken of the original for it:
    activations or codes, ranges of its KV cache, losses of its tensors."""
    taken = (variant.calibration, variant.cache_ranges, variant.sensitivity)
    inputs, ranges, losses = (keys.calibrated(one) if one else None for one in taken)
    return keys.artifact(variant, inputs, ranges, losses), inputs, ranges, losses


def _limits(cells: Sequence[Cell]) -> dict[str, list[float]]:
    """Return the limits of all gates of the cells that share an artifact, by the gates' names."""
    found: dict[str, set[float]] = {}
    for cell in cells:
        name = cell.variant.name if cell.variant else None
        for gate, limit in cell.gates.quality_limits(cell.precision, name).items():
            if limit is not None:
                found.setdefault(gate, set()).add(limit)
    return {gate: sorted(limits) for gate, limits in sorted(found.items())}


def _plan_cell(cell: Cell, artifact: PlannedArtifact | None, matrix: Matrix) -> PlanCell:
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
