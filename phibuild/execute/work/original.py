"""The steps of the original: what it is, its logits to judge by, its activations to build from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from phibuild.backends.calibration import CHUNK_TOKENS
from phibuild.checkpoints.view import source_view
from phibuild.execute.context import RUN_AGAIN, Context
from phibuild.execute.runner.items import run_items
from phibuild.planning.keys import CHANGED, has_changed
from phibuild.planning.making import evaluation_text
from phibuild.planning.steps import (
    REFERENCE_BACKEND,
    ActivationsStep,
    OriginalStep,
    ReferenceStep,
    SourceStep,
)


def original_folder(context: Context, step: OriginalStep) -> Path:
    """Return the folder of a step's result, which must be in the store."""
    folder = context.store.reference(step.key)
    assert folder is not None  # the plan or the step has just seen it
    return folder


def run_original(step: OriginalStep, context: Context, threads: int, alone: bool) -> bool:
    """Run a step of the original with `threads` threads; the context's originals get the folder of
    what it left, or why there is none. Return whether memory ran out beside others, and it is to be
    run again."""
    what, request = _request(context, step)
    found = _run(context, step, what, {**request, "verb": step.kind, "threads": threads}, alone)
    if found is not None:
        context.originals[step.key] = found
    return found is None


def _request(context: Context, step: OriginalStep) -> tuple[str, dict[str, object]]:
    """Return what a step does, in words, and what its runner must know besides."""
    if isinstance(step, SourceStep):
        checkpoint = context.plan.matrix.models[step.model]
        layers = None if step.layers is None else list(step.layers)
        return "the source, read by Transformers", {
            "original": str(checkpoint.folder),
            "layers": layers,
            "fusing": checkpoint.fusing.to_json() if checkpoint.fusing else {},
            "adapter": checkpoint.adapter.to_json() if checkpoint.adapter else None,
            "allow_nonfinite": step.nonfinite,
        }
    if isinstance(step, ReferenceStep):
        evaluation = context.plan.evaluation
        return "the original's logits in fp32", {
            "text": str(evaluation_text(evaluation)),
            "windows": evaluation.windows,
            "window_tokens": evaluation.window_tokens,
            "max_bytes": evaluation.max_reference_bytes,
            "long": True,
        }
    assert isinstance(step, ActivationsStep)  # there is no other
    return f"the original's activations over {step.calibration.path.name}", {
        "text": str(step.calibration.path),
        "tokens": step.calibration.tokens,
        "chunk_tokens": CHUNK_TOKENS,
    }


def _run(
    context: Context, step: OriginalStep, what: str, request: Mapping[str, object], alone: bool
) -> Path | str | None:
    """Send a request of one item to the original's runner, unless the store has its result; return
    the folder there, or why there is none; None if it is to be run again, alone."""
    error = context.toolchain_errors.get(REFERENCE_BACKEND)
    facts = None if isinstance(step, SourceStep) else context.facts(step.model)
    if error or isinstance(facts, str):
        return error or facts
    checkpoint = context.plan.matrix.models[step.model]
    killed: list[str] = []
    with context.told(step.id, what) as failures, context.lock(step.key):
        if context.store.reference(step.key) is None:
            with (
                context.store.workspace() as folder,
                source_view(context.store, checkpoint, facts) as view,
            ):

                def complete(items: Sequence[str]) -> dict[str, object]:
                    place = {
                        "item": items[0],
                        "source": str(view),
                        "architecture": checkpoint.architecture.to_json(),
                        "output": str(folder),
                    }
                    return {**request, **place}

                killed = run_items(
                    context.runner(REFERENCE_BACKEND, step.id),
                    [step.key],
                    complete,
                    on_result=lambda _, __: None,
                    on_failure=lambda _, reason: failures.append(reason),
                    on_stage=lambda event: context.stage(step.id, event),
                    alone=alone,
                    again=step.is_retried,
                )
                if killed:
                    failures.append(RUN_AGAIN)
                digest = context.plan.source_digests[step.model]
                if not failures and has_changed(checkpoint, digest, context.store):
                    failures.append(CHANGED)
                if not failures:
                    context.store.publish_reference(step.key, folder)
        if not failures:
            return original_folder(context, step)
    if killed:
        return None
    return f"{step.failing}: {failures[0]}"
