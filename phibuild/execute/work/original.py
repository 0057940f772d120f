"""The steps of the original: what it is, its logits to judge by, its activations to build from."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from functools import singledispatch
from pathlib import Path

from phibuild.checkpoints.view import source_view
from phibuild.execute.context import Attempt, Context, Original, left_by
from phibuild.execute.runner.items import Reactions, run_items
from phibuild.execute.work.partial import begin, finish
from phibuild.planning.keys import CHANGED, has_changed
from phibuild.planning.making import evaluation_text
from phibuild.planning.requests import (
    asked_of_activations,
    asked_of_reference,
    asked_of_sensitivity,
    asked_of_source,
)
from phibuild.planning.steps import (
    ActivationsStep,
    OriginalStep,
    ReferenceStep,
    SensitivityStep,
    SourceStep,
)


def run_original(step: OriginalStep, context: Context, attempt: Attempt) -> None:
    """Run a step of the original; the context's originals get what it left, unless it is to be run
    again."""
    facts = Original() if step.kind == SourceStep.kind else context.source_facts(step.model)
    if reason := context.toolchain_errors.get(step.backend) or facts.reason:
        context.originals[step.key] = Original(reason=reason)
        return
    what, order = step_order(step, context)
    with context.shown(step, attempt, what), context.lock(step.key):
        if context.store.reference(step.key) is None:
            _run(step, context, attempt, order, facts.folder)
    if attempt.again:
        return
    reason = f"{step.failing}{attempt.failures[0]}" if attempt.failures else None
    context.originals[step.key] = left_by(step, context, step.key, reason)


def _run(
    step: OriginalStep,
    context: Context,
    attempt: Attempt,
    order: Mapping[str, object],
    facts: Path | None,
) -> None:
    checkpoint = context.plan.matrix.models[step.model]
    output = Path()
    with contextlib.ExitStack() as room:

        def request(keys: Sequence[str]) -> Mapping[str, object]:
            # What a runner that died left in its output, or made of its view, must not be met by
            # the next, nor published with what that one makes.
            nonlocal output
            room.close()
            output = room.enter_context(context.store.workspace())
            view = room.enter_context(source_view(context.store, checkpoint, facts))
            place = {
                "item": step.key,
                "source": str(view),
                "output": str(output),
                "threads": attempt.threads,
            }
            if step.kind == SensitivityStep.kind:
                place["states"] = str(begin(context.store, step.key, checkpoint))
            return {**order, **place}

        left = run_items(
            context.runner(step),
            [step.key],
            request,
            Reactions(
                on_result=lambda key, result: None,
                on_failure=lambda key, reason: context.failure(step, attempt, reason),
                on_stage=lambda event: context.stage(step, event),
            ),
            alone=attempt.alone,
            again=step.is_retried,
        )
        if left:
            attempt.run_out_of_memory()
        digest = context.plan.source_digests[step.model]
        if not attempt.failures and has_changed(checkpoint, digest, context.store):
            attempt.failures.append(CHANGED)
        if not attempt.failures:
            context.store.publish_reference(step.key, output)
            finish(context.store, step.key)


@singledispatch
def step_order(step: OriginalStep, context: Context) -> tuple[str, Mapping[str, object]]:
    """Return what a step does, in words, and what its runner must know besides (requests.py)."""
    raise NotImplementedError(step.kind)


@step_order.register
def _source(step: SourceStep, context: Context) -> tuple[str, Mapping[str, object]]:
    checkpoint = context.plan.matrix.models[step.model]
    return "the source, read by Transformers", {
        **asked_of_source(checkpoint),
        "original": str(checkpoint.folder),
        "layers": None if step.layers is None else list(step.layers),
        "allow_nonfinite": step.nonfinite,
    }


@step_order.register
def _reference(step: ReferenceStep, context: Context) -> tuple[str, Mapping[str, object]]:
    evaluation = context.plan.evaluation
    return "the original's logits in fp32", {
        **asked_of_reference(context.plan.matrix.models[step.model], evaluation),
        "text": str(evaluation_text(evaluation)),
    }


@step_order.register
def _sensitivity(step: SensitivityStep, context: Context) -> tuple[str, Mapping[str, object]]:
    checkpoint = context.plan.matrix.models[step.model]
    return f"each matrix's sensitivity over {step.calibration.path.name}", {
        **asked_of_sensitivity(checkpoint, step.calibration),
        "text": str(step.calibration.path),
    }


@step_order.register
def _activations(step: ActivationsStep, context: Context) -> tuple[str, Mapping[str, object]]:
    return f"the original's activations over {step.calibration.path.name}", {
        **asked_of_activations(context.plan.matrix.models[step.model], step.calibration),
        "text": str(step.calibration.path),
    }
