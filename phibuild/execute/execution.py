"""What every executor does the same way: a step's work, its toolchains, what is known before."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import singledispatch

from phibuild.errors import PhibuildError
from phibuild.execute.context import Attempt, Context, Result
from phibuild.execute.environments import what_to_set_up, with_size
from phibuild.execute.runner.usage import Usage
from phibuild.execute.work.build import build
from phibuild.execute.work.measure import measure
from phibuild.execute.work.original import run_original
from phibuild.execute.work.quantize import run_quantize
from phibuild.planning.memory import note_lack, note_peak
from phibuild.planning.plan import Plan
from phibuild.planning.steps import BuildStep, MeasureStep, OriginalStep, QuantizeStep, Step
from phibuild.planning.timing import Times
from phibuild.store.store import Store
from phibuild.toolchains.environment import NOT_INSTALLED, toolchain


@singledispatch
def work(step: Step, context: Context, attempt: Attempt) -> None:
    """Do what a step is for; what comes of it goes into the context and the attempt."""
    raise NotImplementedError(step.kind)


work.register(BuildStep)(build)
work.register(MeasureStep)(measure)
work.register(OriginalStep)(run_original)
work.register(QuantizeStep)(run_quantize)


def run_step(step: Step, context: Context, threads: int, alone: bool) -> bool:
    """Do a step's work, `alone` or beside others, and remember what memory it took. Return whether
    memory ran out beside others, and it is to be run again."""
    attempt = Attempt(threads, alone)
    before, started = replace(context.usage.get(step.id, Usage())), time.monotonic()
    work(step, context, attempt)
    _note(context, step, attempt.again)
    if not attempt.again:
        _note_time(context, step, threads, time.monotonic() - started, before)
        context.listener.over(step.id)
    return attempt.again


def _note_time(context: Context, step: Step, threads: int, seconds: float, before: Usage) -> None:
    """Have the store remember the time of a step that did all by itself; `before` is what it had
    taken until then. One that mostly waited, for another phibuild that did the same, says nothing
    of the work."""
    usage = context.usage.get(step.id, Usage())
    ran = usage.seconds - before.seconds
    by_itself = step.kind != BuildStep.kind or all(
        context.results[artifact.key].status == "built" for artifact in step.artifacts
    )
    if ran > seconds / 2 and by_itself and _is_complete(context, step):
        times = Times(context.store, context.machine)
        with contextlib.suppress(OSError):  # it is not known next time, either
            loading = usage.loading_seconds - before.loading_seconds
            times.note(step, context.plan, threads, seconds, loading)


def _note(context: Context, step: Step, again: bool) -> None:
    """Have the store remember the memory of a step that was killed for it, or that is complete."""
    usage = context.usage.get(step.id)
    if usage is None or usage.peak_anonymous_bytes is None:
        return  # nothing had to be run, or the system does not say what it took
    with contextlib.suppress(OSError):  # the estimate stays as it is
        if again:
            note_lack(context.store, step.need, usage.peak_anonymous_bytes)
        elif _is_complete(context, step):
            note_peak(context.store, step.need, usage.peak_anonymous_bytes)


def _is_complete(context: Context, step: Step) -> bool:
    if any(context.originals[key].reason for key in step.makes if key in context.originals):
        return False
    return all(context.results[artifact.key].status != "failed" for artifact in step.artifacts)


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
    # A display that has one line for a step shows its stage alone.
    before = f"{with_size(name)}: " if problem == NOT_INSTALLED else ""
    failure, started = None, time.monotonic()
    context.listener.started(step, f"set up {what_to_set_up(name, problem)}")
    try:
        toolchain(name).install(
            lambda text: context.listener.stage(step, before + text, None),
            lambda: context.runners.stopping,
        )
    except (PhibuildError, OSError) as error:
        failure = context.toolchain_errors[name] = str(error)
    context.listener.ended(step, failure, time.monotonic() - started)
