"""The step that judges: every artifact against the original's logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from phibuild.execute.context import RUN_AGAIN, Context
from phibuild.execute.runner.events import BadResult, read_result
from phibuild.execute.runner.items import run_items
from phibuild.planning.steps import MeasureStep
from phibuild.store.documents import Measure


def measure(step: MeasureStep, context: Context, threads: int, alone: bool) -> bool:
    """Judge those of a step's artifacts that were built, with `threads` threads; what was found
    goes into the store and the context's results. Return whether memory ran out beside others,
    and it is to be run again."""
    original = context.plan.reference_of(step.model)
    assert original is not None  # the plan has it for whatever is judged
    reference = context.originals[original.key]
    error = context.toolchain_errors.get(step.backend)
    present = {
        artifact.key: artifact
        for artifact in step.artifacts
        if context.results[artifact.key].status in ("built", "cached")
        and not context.results[artifact.key].measure
    }
    if not present:
        return False
    if isinstance(reference, str) or error:
        for artifact in present.values():
            context.fail(artifact, error or str(reference))
        return False
    killed: list[str] = []
    names = ", ".join(artifact.variant.name for artifact in present.values())
    with context.told(
        step.id,
        f"judge {names}",
        lambda: [a for a in present.values() if not context.results[a.key].measure],
    ) as failures:
        runner = context.runner(step.backend, step.id)

        def request(items: Sequence[str]) -> dict[str, object]:
            entries = [
                {"item": key, "folder": str(context.store.root / "artifacts" / key)}
                for key in items
            ]
            return {
                "verb": "judge",
                "items": entries,
                "reference": str(reference),
                "threads": threads,
                "decode_tokens": context.plan.evaluation.decode_tokens,
            }

        def judged(key: str, result: Mapping[str, object]) -> None:
            try:
                found = read_result(result, Measure)
            except BadResult as wrong:
                failed(key, str(wrong))
                return
            measure_key = present[key].measure_key
            assert measure_key is not None  # judging is on
            context.store.publish_measure(measure_key, found)
            context.results[key].measure = found

        def failed(key: str, reason: str) -> None:
            context.fail(present[key], f"it was built, but could not be judged: {reason}")
            failures.append(f"{present[key].variant.name}: {reason}")

        for artifact in present.values():
            context.results[artifact.key].logs.append(runner.log)
        killed = run_items(
            runner,
            list(present),
            request,
            on_result=judged,
            on_failure=failed,
            on_stage=lambda event: context.stage(step.id, event),
            alone=alone,
        )
        if killed:
            failures.append(RUN_AGAIN)
    return bool(killed)
