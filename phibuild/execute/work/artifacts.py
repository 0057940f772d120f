"""A runner at work on several artifacts: what building and judging do alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from phibuild.execute.context import Attempt, Context
from phibuild.execute.runner.events import BadResult
from phibuild.execute.runner.items import Reactions, run_items
from phibuild.planning.steps import PlannedArtifact, Step

Take = Callable[[PlannedArtifact, Mapping[str, object]], None]
"""Takes the runner's result for an artifact; raises BadResult if it is not what it should be."""


def run_on_artifacts(
    context: Context,
    step: Step,
    attempt: Attempt,
    artifacts: Sequence[PlannedArtifact],
    request: Callable[[Sequence[PlannedArtifact]], Mapping[str, object]],
    take: Take,
) -> None:
    """Send `artifacts` of a step to its runner, together, or one by one after a crash; what fails
    goes into the context and the attempt."""
    by_key = {artifact.key: artifact for artifact in artifacts}
    runner = context.runner(step)
    for artifact in artifacts:
        context.results[artifact.key].logs.append(runner.log)

    def failed(key: str, reason: str) -> None:
        context.fail(by_key[key], f"{step.failing}{reason}")
        context.failure(step, attempt, f"{by_key[key].variant.name}: {reason}")

    def done(key: str, result: Mapping[str, object]) -> None:
        try:
            take(by_key[key], result)
        except BadResult as error:
            failed(key, str(error))

    left = run_items(
        runner,
        list(by_key),
        lambda keys: request([by_key[key] for key in keys]),
        Reactions(done, failed, lambda event: context.stage(step, event)),
        alone=attempt.alone,
    )
    if left:
        attempt.run_out_of_memory()
