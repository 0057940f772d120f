"""The build step: one runner makes several artifacts, each is checked and published as it comes."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from phibuild import __version__
from phibuild.backends.registry import backend
from phibuild.checkpoints.view import source_view
from phibuild.errors import StoreError
from phibuild.execute.context import Attempt, Context
from phibuild.execute.runner.events import BadResult, BuildResult, read_result
from phibuild.execute.work.artifacts import run_on_artifacts
from phibuild.execute.work.mixed import surplus_bytes, with_chosen_types
from phibuild.planning.code import step_digest
from phibuild.planning.keys import CHANGED, has_changed
from phibuild.planning.readme import add_documents
from phibuild.planning.requests import asked_of_build
from phibuild.planning.steps import BuildStep, PlannedArtifact
from phibuild.store.documents import ArtifactFacts
from phibuild.toolchains.environment import toolchain
from phibuild.worker.requests import BuildItem, BuildRequest, VariantData


def build(step: BuildStep, context: Context, attempt: Attempt) -> None:
    """Build a step's artifacts; what became of each goes into the context's results."""
    if error := context.toolchain_errors.get(step.backend):
        for artifact in step.artifacts:
            context.fail(artifact, error)
        return
    names = ", ".join(artifact.variant.name for artifact in step.artifacts)
    with contextlib.ExitStack() as stack:
        shown = context.shown(
            step, attempt, f"build {names}", lambda result: result.status == "failed"
        )
        stack.enter_context(shown)
        for key in sorted(artifact.key for artifact in step.artifacts):
            stack.enter_context(context.lock(key))
        wanted = _wanted(step, context, attempt)
        if wanted:
            _build(step, context, attempt, wanted, stack)


def _wanted(step: BuildStep, context: Context, attempt: Attempt) -> list[PlannedArtifact]:
    """Return the artifacts that are to be built and can be. Another phibuild may have built some of
    them while this one waited for the locks."""
    wanted = []
    for artifact in step.artifacts:
        inputs = [context.source_facts(step.model)]
        inputs += [context.originals[key] for key in artifact.inputs]
        reason = next((one.reason for one in inputs if one.reason), None)
        if context.store.artifact(artifact.key):
            if context.results[artifact.key].status != "built":
                context.results[artifact.key].status = "cached"
        elif reason:
            context.fail(artifact, reason)
            # The step that it is of has told of it.
            attempt.failures.append(f"{artifact.variant.name}: {reason}")
        else:
            try:
                wanted.append(with_chosen_types(context, artifact))
            except BadResult as error:
                context.fail(artifact, str(error))
                context.failure(step, attempt, f"{artifact.variant.name}: {error}")
    return wanted


def _build(
    step: BuildStep,
    context: Context,
    attempt: Attempt,
    wanted: Sequence[PlannedArtifact],
    stack: contextlib.ExitStack,
) -> None:
    checkpoint = context.plan.matrix.models[step.model]
    facts = context.source_facts(step.model).folder
    workspace = stack.enter_context(context.store.workspace())
    outputs: dict[str, Path] = {}
    smaller: list[PlannedArtifact] = []
    # What a crashed runner left, or made of its view, must not be met by the next.
    runs = itertools.count(1)

    def request(artifacts: Sequence[PlannedArtifact]) -> Mapping[str, object]:
        run = next(runs)
        view = stack.enter_context(source_view(context.store, checkpoint, facts))
        items: list[BuildItem] = []
        for artifact in artifacts:
            output = outputs[artifact.key] = workspace / f"{artifact.key[:16]}-{run}"
            output.mkdir()
            variant: VariantData = artifact.variant.model_dump(mode="json")  # type: ignore[assignment]
            item: BuildItem = {"item": artifact.key, "variant": variant, "output": str(output)}
            if inputs := artifact.activations:
                calibration = artifact.variant.calibration
                folder = str(context.originals[inputs].folder)
                if calibration and calibration.grid:
                    item["codes"] = folder
                else:
                    item["activations"] = folder
            if ranges := artifact.cache_ranges:
                item["cache_ranges"] = str(context.originals[ranges].folder)
            if artifact.variant.file:
                item["file"] = str(artifact.variant.file.path)
            items.append(item)
        whole: BuildRequest = {
            **asked_of_build(checkpoint),
            "source": str(view),
            "facts": str(facts),
            "threads": attempt.threads,
            "items": items,
        }
        return whole

    def take(artifact: PlannedArtifact, result: Mapping[str, object]) -> None:
        found = read_result(result, BuildResult)
        if surplus := surplus_bytes(artifact, outputs[artifact.key]):
            if any(artifact.key == one.key for one in smaller):
                raise BadResult(
                    f"it is larger than its target_size, by {surplus:,} bytes more than planned"
                )
            smaller.append(with_chosen_types(context, artifact, surplus))
            return
        wrong = check_and_publish(context, artifact, outputs[artifact.key], found)
        if wrong:
            raise BadResult(wrong)
        context.results[artifact.key].status = "built"

    run_on_artifacts(context, step, attempt, wanted, request, take)
    if smaller and not attempt.again:
        run_on_artifacts(context, step, attempt, smaller, request, take)


def check_and_publish(
    context: Context, artifact: PlannedArtifact, folder: Path, result: BuildResult
) -> str | None:
    """Check a finished artifact against its promise and move it into the store; return what
    is wrong with it."""
    if result.types != artifact.estimate.types:
        return (
            f"the artifact holds {_type_names(result.types)}; "
            f"{artifact.variant.name} promises {_type_names(artifact.estimate.types)}"
        )
    checkpoint = context.plan.matrix.models[artifact.model]
    digest = context.plan.source_digests[artifact.model]
    if has_changed(checkpoint, digest, context.store):
        return CHANGED
    bits = 8 * result.weight_bytes / sum(result.types.values())
    if abs(bits / artifact.estimate.bits_per_weight - 1) > 0.03:
        return f"{bits:.2f} bits per weight, {artifact.estimate.bits_per_weight:.2f} promised"
    try:
        facts = ArtifactFacts(
            model=artifact.model,
            source_digest=digest,
            backend=artifact.variant.backend,
            variant=artifact.variant,
            format=artifact.variant.format,
            phibuild_version=__version__,
            toolchain_digest=toolchain(artifact.variant.backend).digest,
            builder_digest=step_digest("build", artifact.variant.backend, context.store),
            activations=artifact.activations,
            types=result.types,
            tokenizer=result.tokenizer,
            bits_per_weight=bits,
            build_seconds=result.seconds,
            build_own_seconds=result.own_seconds,
            build_shared_seconds=result.shared_seconds,
            peak_rss_bytes=result.peak_rss_bytes,
        )
        add_documents(folder, checkpoint, backend(artifact.variant.backend), facts)
        context.store.publish(artifact.key, folder, facts)
    except OSError as error:
        return f"could not be stored: {error.strerror or error} ({context.store.root})"
    except StoreError as error:
        return f"could not be stored: {error}"
    return None


def _type_names(types: dict[str, int]) -> str:
    return ", ".join(f"{count:,} x {kind}" for kind, count in sorted(types.items()))
