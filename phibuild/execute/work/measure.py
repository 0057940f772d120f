"""The step that judges: every artifact against the original's logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from phibuild.execute.context import Attempt, Context
from phibuild.execute.runner.events import read_result
from phibuild.execute.work.artifacts import run_on_artifacts
from phibuild.planning.requests import asked_of_judge
from phibuild.planning.steps import MeasureStep, PlannedArtifact
from phibuild.store.documents import Measure
from phibuild.worker.requests import JudgeItem, JudgeRequest


def measure(step: MeasureStep, context: Context, attempt: Attempt) -> None:
    """Judge those of a step's artifacts that were built; what was found goes into the store and the
    context's results."""
    original = context.plan.reference_of(step.model)
    assert original is not None  # the plan has it for whatever is judged
    reference = context.originals[original.key]
    present = [
        artifact
        for artifact in step.artifacts
        if context.results[artifact.key].is_there and not context.results[artifact.key].measure
    ]
    if not present:
        return
    if error := context.toolchain_errors.get(step.backend) or reference.reason:
        for artifact in present:
            context.fail(artifact, error)
        return

    left = []
    for artifact in present:
        other = artifact.stand_in
        if other is None or context.store.artifact(other):
            left.append(artifact)
            continue
        result = context.results.get(other)
        why = result.reason if result else None
        reason = f"what is opened for it is not there{f': {why}' if why else ''}"
        context.fail(artifact, f"{step.failing}{reason}")
        context.failure(step, attempt, f"{artifact.variant.name}: {reason}")

    def request(artifacts: Sequence[PlannedArtifact]) -> Mapping[str, object]:
        items: list[JudgeItem] = [
            {
                "item": one.key,
                "folder": str(context.store.root / "artifacts" / one.opened),
                "limits": {gate: list(limits) for gate, limits in one.limits.items()},
                "comparisons": list(one.comparisons),
                "tokens": one.tokens,
            }
            for one in artifacts
        ]
        whole: JudgeRequest = {
            **asked_of_judge(context.plan.evaluation),
            "items": items,
            "reference": str(reference.folder),
            "threads": attempt.threads,
        }
        return whole

    def take(artifact: PlannedArtifact, result: Mapping[str, object]) -> None:
        found = read_result(result, Measure)
        assert artifact.measure_key is not None  # judging is on
        context.store.publish_measure(artifact.measure_key, found)
        context.results[artifact.key].measure = found

    names = ", ".join(artifact.variant.name for artifact in present)
    with context.shown(step, attempt, f"judge {names}", lambda result: not result.measure):
        if left:
            run_on_artifacts(context, step, attempt, left, request, take)
