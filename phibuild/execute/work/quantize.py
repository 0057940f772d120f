"""The step that puts the original's weights on grids: one runner, several results; none of them has
to be begun again after a kill."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

from phibuild.checkpoints.view import source_view
from phibuild.execute.context import Attempt, Context, Original, left_by
from phibuild.execute.runner.items import Reactions, run_items
from phibuild.execute.work.partial import begin, finish
from phibuild.planning.keys import CHANGED, has_changed
from phibuild.planning.requests import asked_of_quantize
from phibuild.planning.steps import QuantizeStep
from phibuild.worker.requests import QuantizeItem


def run_quantize(step: QuantizeStep, context: Context, attempt: Attempt) -> None:
    """Make what a step lacks; the context's originals get what it left, unless it is to be run
    again. Layers that are finished stay in the store, in `partial`, if a runner dies or phibuild
    does."""
    facts = context.source_facts(step.model)
    if reason := context.toolchain_errors.get(step.backend) or facts.reason:
        context.originals |= {key: Original(reason=reason) for key in step.makes}
        return
    what = f"GPTQ over {step.calibration.path.name}, {len(step.grids)} grids"
    reasons: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        stack.enter_context(context.shown(step, attempt, what.replace("1 grids", "one grid")))
        for key in sorted({step.key, *step.makes}):
            stack.enter_context(context.lock(key))
        missing = [key for key in step.makes if context.store.reference(key) is None]
        if missing:
            _run(step, context, attempt, missing, reasons, stack)
    if attempt.again:
        return
    for key in step.makes:
        failed = reasons.get(key) or next(iter(attempt.failures), None)
        reason = f"{step.failing}{failed}" if failed else None
        context.originals[key] = left_by(step, context, key, reason)


def _run(
    step: QuantizeStep,
    context: Context,
    attempt: Attempt,
    missing: Sequence[str],
    reasons: dict[str, str],
    stack: contextlib.ExitStack,
) -> None:
    checkpoint = context.plan.matrix.models[step.model]
    facts = context.source_facts(step.model).folder
    begun = {key: begin(context.store, key, checkpoint) for key in (step.key, *missing)}

    def request(keys: Sequence[str]) -> Mapping[str, object]:
        view = stack.enter_context(source_view(context.store, checkpoint, facts))
        items: list[QuantizeItem] = [
            {"item": key, "grid": step.grids[key].to_json(), "output": str(begun[key])}
            for key in keys
        ]
        return {
            **asked_of_quantize(checkpoint, step.calibration),
            "items": items,
            "source": str(view),
            "states": str(begun[step.key]),
            "threads": attempt.threads,
            "text": str(step.calibration.path),
        }

    def failed(key: str, reason: str) -> None:
        reasons[key] = reason
        context.failure(step, attempt, reason)

    def done(key: str, result: Mapping[str, object]) -> None:
        if has_changed(checkpoint, context.plan.source_digests[step.model], context.store):
            failed(key, CHANGED)
            return
        context.store.publish_reference(key, begun[key])
        finish(context.store, key)

    left = run_items(
        context.runner(step),
        missing,
        request,
        Reactions(done, failed, lambda event: context.stage(step, event)),
        alone=attempt.alone,
    )
    if left:
        attempt.run_out_of_memory()
    elif not attempt.failures:
        finish(context.store, step.key)
