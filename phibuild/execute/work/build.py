"""The build step: one runner makes several artifacts, each is checked and published as it comes."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from phibuild import __version__
from phibuild.backends.registry import backend
from phibuild.checkpoints.facts import license_file
from phibuild.checkpoints.view import source_view
from phibuild.execute.context import RUN_AGAIN, Context
from phibuild.execute.runner.events import BadResult, BuildResult, read_result
from phibuild.execute.runner.items import run_items
from phibuild.execute.work.readme import artifact_readme, tokenizer_notes
from phibuild.planning.keys import CHANGED, builder_digest, has_changed
from phibuild.planning.steps import Artifact, BuildStep
from phibuild.store.documents import ArtifactFacts
from phibuild.toolchains.environment import toolchain

_NOT_READ = "the source has not been read"


def build(step: BuildStep, context: Context, threads: int, alone: bool) -> bool:
    """Build a step's artifacts with `threads` threads; what became of each goes into the
    context's results. Return whether memory ran out beside others, and it is to be run again."""
    error = context.toolchain_errors.get(step.backend)
    if error:
        for artifact in step.artifacts:
            context.fail(artifact, error)
        return False
    names = ", ".join(artifact.variant.name for artifact in step.artifacts)
    with contextlib.ExitStack() as stack:
        failures = stack.enter_context(
            context.told(
                step.id,
                f"build {names}",
                lambda: [a for a in step.artifacts if context.results[a.key].status == "failed"],
            )
        )
        for key in sorted(artifact.key for artifact in step.artifacts):
            stack.enter_context(context.lock(key))
        return _build_locked(context, step, threads, failures, stack, alone)
    return False  # an error ended it


def _build_locked(
    context: Context,
    step: BuildStep,
    threads: int,
    failures: list[str],
    stack: contextlib.ExitStack,
    alone: bool,
) -> bool:
    # Another phibuild may have built some of them while this one waited for the locks.
    wanted: dict[str, Artifact] = {}
    facts = context.facts(step.model)
    for artifact in step.artifacts:
        inputs = context.originals.get(artifact.activations or "")
        if not isinstance(facts, Path):
            inputs = facts or _NOT_READ
        if context.store.artifact(artifact.key):
            if context.results[artifact.key].status != "built":
                context.results[artifact.key].status = "cached"
        elif isinstance(inputs, str):
            context.fail(artifact, inputs)
            failures.append(f"{artifact.variant.name}: {inputs}")
        else:
            wanted[artifact.key] = artifact
    if not wanted:
        return False
    assert isinstance(facts, Path)  # else nothing is wanted
    checkpoint = context.plan.matrix.models[step.model]
    workspace = stack.enter_context(context.store.workspace())
    view = stack.enter_context(source_view(context.store, checkpoint, facts))
    runner = context.runner(step.backend, step.id)
    attempts = 0

    def request(items: Sequence[str]) -> dict[str, object]:
        nonlocal attempts
        attempts += 1  # what a crashed runner left must not be met by the next
        entries = []
        for key in items:
            output = workspace / f"{key[:16]}-{attempts}"
            output.mkdir()
            outputs[key] = output
            entry = {"item": key, "variant": wanted[key].variant.model_dump(mode="json")}
            if inputs := wanted[key].activations:
                entry["activations"] = str(context.originals[inputs])
            entries.append({**entry, "output": str(output)})
        return {
            "verb": "build",
            "source": str(view),
            "facts": str(facts),
            "architecture": checkpoint.architecture.to_json(),
            "model": checkpoint.name,
            "threads": threads,
            "items": entries,
        }

    def failed(key: str, reason: str) -> None:
        context.fail(wanted[key], reason)
        failures.append(f"{wanted[key].variant.name}: {reason}")

    def built(key: str, result: Mapping[str, object]) -> None:
        try:
            found = read_result(result, BuildResult)
            wrong = check_and_publish(context, wanted[key], outputs[key], found)
        except BadResult as error:
            wrong = str(error)
        if wrong:
            failed(key, wrong)
        else:
            context.results[key].status = "built"

    outputs: dict[str, Path] = {}
    for artifact in wanted.values():
        context.results[artifact.key].logs.append(runner.log)
    killed = run_items(
        runner,
        list(wanted),
        request,
        on_result=built,
        on_failure=failed,
        on_stage=lambda event: context.stage(step.id, event),
        alone=alone,
    )
    if killed:
        failures.append(RUN_AGAIN)
    return bool(killed)


def check_and_publish(
    context: Context, artifact: Artifact, folder: Path, result: BuildResult
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
        assert checkpoint.folder is not None  # only local checkpoints are built
        license = license_file(checkpoint.folder)
        if license and not (folder / "LICENSE").exists():
            shutil.copyfile(license, folder / "LICENSE")
        text = artifact_readme(
            checkpoint,
            backend(artifact.variant.backend),
            artifact.variant,
            digest,
            bits,
            tokenizer_notes(result.tokenizer),
        )
        (folder / "README.md").write_text(text, encoding="utf-8")
        context.store.publish(
            artifact.key,
            folder,
            ArtifactFacts(
                model=artifact.model,
                source_digest=digest,
                backend=artifact.variant.backend,
                variant=artifact.variant,
                format=artifact.variant.format,
                phibuild_version=__version__,
                toolchain_digest=toolchain(artifact.variant.backend).digest,
                builder_digest=builder_digest(artifact.variant.backend),
                activations=artifact.activations,
                types=result.types,
                tokenizer=result.tokenizer,
                bits_per_weight=bits,
                build_seconds=result.seconds,
                build_own_seconds=result.own_seconds,
                build_shared_seconds=result.shared_seconds,
                peak_rss_bytes=result.peak_rss_bytes,
            ),
        )
    except OSError as error:
        return f"could not be stored: {error.strerror or error} ({context.store.root})"
    return None


def _type_names(types: dict[str, int]) -> str:
    return ", ".join(f"{count:,} x {kind}" for kind, count in sorted(types.items()))
