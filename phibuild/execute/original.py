"""The steps that run the original: its logits to judge by, its activations to build from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from phibuild.calibration import CHUNK_TOKENS
from phibuild.execute.context import RUN_AGAIN, Context
from phibuild.execute.items import run_items
from phibuild.keys import CHANGED, has_changed
from phibuild.plan import evaluation_text
from phibuild.steps import REFERENCE_BACKEND, ActivationsStep, ReferenceStep


def original_folder(context: Context, step: ReferenceStep | ActivationsStep) -> Path:
    """Return the folder of a step's result, which must be in the store."""
    folder = context.store.reference(step.key)
    assert folder is not None  # the plan or the step has just seen it
    return folder


def reference(context: Context, step: ReferenceStep, threads: int, alone: bool = True) -> bool:
    """Run the original in fp32 over the held-out text with `threads` threads; the context's
    references get the folder of its logits, or why there is none. Return whether memory ran out
    beside others, and it is to be run again."""
    evaluation = context.plan.evaluation
    request = {
        "verb": "reference",
        "text": str(evaluation_text(evaluation)),
        "windows": evaluation.windows,
        "window_tokens": evaluation.window_tokens,
        "max_bytes": evaluation.max_reference_bytes,
        "long": True,
        "threads": threads,
    }
    found = _run(context, step, "the original's logits in fp32", request, alone)
    if found is not None:
        context.references[step.model] = found
    return found is None


def activations(context: Context, step: ActivationsStep, threads: int, alone: bool = True) -> bool:
    """Run the original in fp32 over a calibration text with `threads` threads; the context's
    activations get the folder of its layers' squared inputs, or why there is none. Return whether
    memory ran out beside others, and it is to be run again."""
    request = {
        "verb": "activations",
        "text": str(step.calibration.path),
        "tokens": step.calibration.tokens,
        "chunk_tokens": CHUNK_TOKENS,
        "threads": threads,
    }
    what = f"the original's activations over {step.calibration.path.name}"
    found = _run(context, step, what, request, alone)
    if found is not None:
        context.activations[step.key] = found
    return found is None


def _run(
    context: Context,
    step: ReferenceStep | ActivationsStep,
    what: str,
    request: dict[str, Any],
    alone: bool,
) -> Path | str | None:
    """Send a request of one item to the original's runner, unless the store has its result; return
    the folder there, or why there is none; None if it is to be run again, alone."""
    error = context.toolchain_errors.get(REFERENCE_BACKEND)
    if error:
        return error
    checkpoint = context.plan.matrix.models[step.model]
    killed: list[str] = []
    with context.told(step.id, what) as failures, context.lock(step.key):
        if context.store.reference(step.key) is None:
            with context.store.workspace() as folder:

                def complete(items: Sequence[str]) -> dict[str, Any]:
                    place = {"source": str(checkpoint.folder), "output": str(folder)}
                    return {**request, "item": items[0], **place}

                killed = run_items(
                    context.runner(REFERENCE_BACKEND, step.id),
                    [step.key],
                    complete,
                    on_result=lambda _, __: None,
                    on_failure=lambda _, reason: failures.append(reason),
                    on_stage=lambda event: context.stage(step.id, event),
                    alone=alone,
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
    return f"the original could not be run: {failures[0]}"
