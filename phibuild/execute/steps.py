"""What every executor does the same way: a step's work, its toolchains, what is known before."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from phibuild.errors import PhibuildError
from phibuild.execute.building import build
from phibuild.execute.context import Context, Result
from phibuild.execute.judging import measure
from phibuild.execute.original import activations, reference
from phibuild.steps import ActivationsStep, BackendStep, BuildStep, MeasureStep, Plan, ReferenceStep
from phibuild.store import Store
from phibuild.toolchains import toolchain

Step = ReferenceStep | ActivationsStep | BackendStep


def step_function(context: Context, step: Step, threads: int) -> Callable[[], None]:
    """Return the work of a step; what comes of it goes into the context. Judging takes all of
    the context's cores, the others `threads`."""
    if isinstance(step, ReferenceStep):
        return partial(reference, context, step, threads)
    if isinstance(step, ActivationsStep):
        return partial(activations, context, step, threads)
    if isinstance(step, BuildStep):
        return partial(build, context, step, threads)
    assert isinstance(step, MeasureStep)  # there is no other
    return partial(measure, context, step)


def step_needs(plan: Plan, step: Step) -> frozenset[str]:
    """Return the ids of the plan's steps that must have ended before a step starts."""
    if isinstance(step, BuildStep):
        keys = {artifact.activations for artifact in step.artifacts}
        return frozenset(inputs.id for inputs in plan.activations if inputs.key in keys)
    if isinstance(step, MeasureStep):
        return frozenset({f"reference.{step.model}", f"build.{step.model}.{step.backend}"})
    return frozenset()


def known_results(plan: Plan, store: Store) -> dict[str, Result]:
    """Return what is known of each artifact before anything runs: cached ones, measurements."""
    results = {artifact.key: Result(artifact) for artifact in plan.artifacts}
    for result in results.values():
        if result.artifact.cached:
            result.status = "cached"
        if result.artifact.judged and result.artifact.measure_key:
            result.measure = store.measure(result.artifact.measure_key)
    return results


def install_toolchain(context: Context, name: str) -> None:
    """Make a backend's environment unless it is there; why that failed goes into the context."""
    step = f"toolchain.{name}"
    if toolchain(name).problem() is None:
        return
    with context.told(step, "set up the environment") as failures:
        try:
            toolchain(name).install(lambda text: context.listener.stage(step, text, None))
        except (PhibuildError, OSError) as error:
            context.toolchain_errors[name] = str(error)
            failures.append(str(error))
