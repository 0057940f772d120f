"""What every executor does the same way: a step's work, its toolchains, what is known before."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from functools import partial

from phibuild.errors import PhibuildError
from phibuild.execute.context import Context, Result
from phibuild.execute.work.build import build
from phibuild.execute.work.measure import measure
from phibuild.execute.work.original import run_original
from phibuild.planning.memory import note_lack, note_peak
from phibuild.planning.steps import (
    BackendStep,
    BuildStep,
    MeasureStep,
    OriginalStep,
    Plan,
    SourceStep,
)
from phibuild.store.store import Store
from phibuild.toolchains.environment import NOT_INSTALLED, toolchain

Step = OriginalStep | BackendStep


def step_function(context: Context, step: Step, threads: int) -> Callable[[bool], bool]:
    """Return the work of a step; what comes of it goes into the context. It is told whether it
    runs alone, and returns whether memory ran out beside others, and it is to be run again."""

    def work(alone: bool) -> bool:
        again = _work(context, step, threads)(alone)
        _note(context, step, again)
        return again

    return work


def _work(context: Context, step: Step, threads: int) -> Callable[[bool], bool]:
    if isinstance(step, OriginalStep):
        return partial(run_original, context, step, threads)
    if isinstance(step, BuildStep):
        return partial(build, context, step, threads)
    assert isinstance(step, MeasureStep)  # there is no other
    return partial(measure, context, step, threads)


def _note(context: Context, step: Step, again: bool) -> None:
    """Have the store remember the memory of a step that was killed for it, or that is complete."""
    usage = context.usage.get(step.id)
    if usage is None or usage.peak_anonymous_bytes is None:
        return  # nothing had to be run, or the system does not say what it took
    with contextlib.suppress(OSError):  # the estimate stays as it is
        if again:
            note_lack(context.store, step.demand, usage.peak_anonymous_bytes)
        elif _is_complete(context, step):
            note_peak(context.store, step.demand, usage.peak_anonymous_bytes)


def _is_complete(context: Context, step: Step) -> bool:
    if isinstance(step, OriginalStep):
        return not isinstance(context.originals[step.key], str)
    return all(context.results[artifact.key].status != "failed" for artifact in step.artifacts)


def step_needs(plan: Plan, step: Step) -> frozenset[str]:
    """Return the ids of the plan's steps that must have ended before a step starts."""
    if isinstance(step, SourceStep):
        return frozenset()
    if isinstance(step, MeasureStep):
        keys = {artifact.key for artifact in step.artifacts}
        builds = {one.id for one in plan.builds if keys & {made.key for made in one.artifacts}}
        return frozenset({f"reference.{step.model}", *builds})
    needs = {source.id for source in plan.sources if source.model == step.model}
    if isinstance(step, BuildStep):
        inputs = {artifact.activations for artifact in step.artifacts}
        needs |= {one.id for one in plan.activations if one.key in inputs}
    return frozenset(needs)


def known_results(plan: Plan, store: Store) -> dict[str, Result]:
    """Return what is known of each artifact before anything runs: cached ones, measurements."""
    results = {artifact.key: Result(artifact) for artifact in plan.artifacts}
    for result in results.values():
        if result.artifact.cached:
            result.status = "cached"
        if result.artifact.judged and result.artifact.measure_key:
            result.measure = store.measure(result.artifact.measure_key)
    return results


def apply_refusals(plan: Plan, results: Mapping[str, Result]) -> None:
    """Fail the artifacts that were not built or not judged because the plan refuses the step."""
    for refusal in plan.refusals:
        for key in refusal.artifacts:
            result = results[key]
            reason = f"{refusal.reason}; {refusal.remedy}"
            if result.status != "failed":
                reason = f"it was built, but not judged: {reason}"
            elif result.reason or refusal.stops == "measure":
                continue  # it failed for a reason of its own
            result.status, result.reason = "failed", reason


def install_toolchain(context: Context, name: str) -> None:
    """Make a backend's environment unless it is there; why that failed goes into the context."""
    step = f"toolchain.{name}"
    problem = toolchain(name).problem()
    if problem is None:
        return
    what = "set up the environment"
    if problem != NOT_INSTALLED:
        what += f" again: {problem}"
    with context.told(step, what) as failures:
        try:
            toolchain(name).install(
                lambda text: context.listener.stage(step, text, None),
                lambda: context.runners.stopping,
            )
        except (PhibuildError, OSError) as error:
            context.toolchain_errors[name] = str(error)
            failures.append(str(error))
