"""The local executor: a plan's steps as tasks on this machine, their results by artifact.

A step never raises for what its work does: it notes why an artifact failed and the others go on.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil

from phibuild.errors import PhibuildError
from phibuild.execute.building import build
from phibuild.execute.context import Context, Listener, Result
from phibuild.execute.judging import measure
from phibuild.execute.original import activations, original_folder, reference
from phibuild.execute.scheduler import History, Task, run_tasks
from phibuild.execute.usage import Usage
from phibuild.schema import ExecutorSettings
from phibuild.steps import Plan
from phibuild.store import Store
from phibuild.toolchains import toolchain

_MEMORY_MARGIN = 1 << 30


@dataclass(frozen=True)
class Execution:
    """What came of a plan: results by artifact key, what ran when and what it took by step, the
    cores and bytes of memory that it was run within. `complete` is False if Ctrl-C ended it."""

    results: dict[str, Result]
    history: History
    usage: dict[str, Usage]
    cores: int
    memory_bytes: int
    complete: bool


def run_plan(
    plan: Plan, store: Store, settings: ExecutorSettings, logs: Path, listener: Listener
) -> Execution:
    """Run all steps of a plan. `logs` is the folder for the steps' logs."""
    context = Context(
        plan=plan,
        store=store,
        logs=logs,
        listener=listener,
        timeout=settings.timeout,
        cores=settings.cores or os.cpu_count() or 1,
        results={artifact.key: Result(artifact) for artifact in plan.artifacts},
    )
    memory = settings.memory or max(
        psutil.virtual_memory().available - _MEMORY_MARGIN, _MEMORY_MARGIN
    )
    for result in context.results.values():
        if result.artifact.cached:
            result.status = "cached"
        if result.artifact.judged and result.artifact.measure_key:
            result.measure = store.measure(result.artifact.measure_key)
    history, complete = History(), True
    try:
        run_tasks(
            list(_tasks(context)),
            cores=context.cores,
            memory_bytes=memory,
            stop=threading.Event(),
            cancel=context.runners.stop,
            history=history,
        )
    except KeyboardInterrupt:
        complete = False
        for result in context.results.values():
            if result.status == "failed" and result.reason is None:
                result.reason = "interrupted"
    return Execution(context.results, history, context.usage, context.cores, memory, complete)


def _tasks(context: Context) -> Iterator[Task]:
    plan = context.plan
    half = max(1, context.cores // 2)
    for name in plan.toolchains:
        yield Task(f"toolchain.{name}", frozenset(), 0, 0, partial(_install, context, name))
    for original in plan.references:
        if original.cached:
            context.references[original.model] = original_folder(context, original)
        else:
            yield Task(
                original.id,
                frozenset({"toolchain.pytorch"}),
                half,
                original.memory_bytes,
                partial(reference, context, original, half),
            )
    for inputs in plan.activations:
        if inputs.cached:
            context.activations[inputs.key] = original_folder(context, inputs)
        else:
            yield Task(
                inputs.id,
                frozenset({"toolchain.pytorch"}),
                half,
                inputs.memory_bytes,
                partial(activations, context, inputs, half),
            )
    for pass_ in plan.builds:
        keys = {artifact.activations for artifact in pass_.artifacts}
        needs = {inputs.id for inputs in plan.activations if inputs.key in keys}
        yield Task(
            pass_.id,
            frozenset({f"toolchain.{pass_.backend}", *needs}),
            half,
            pass_.memory_bytes,
            partial(build, context, pass_, half),
        )
    for judging in plan.measures:
        yield Task(
            judging.id,
            frozenset(
                {
                    f"toolchain.{judging.backend}",
                    f"reference.{judging.model}",
                    f"build.{judging.model}.{judging.backend}",
                }
            ),
            context.cores,  # alone: its figures of speed are reported
            judging.memory_bytes,
            partial(measure, context, judging),
        )


def _install(context: Context, name: str) -> None:
    step = f"toolchain.{name}"
    if toolchain(name).problem() is None:
        return
    with context.told(step, "set up the environment") as failures:
        try:
            toolchain(name).install(lambda text: context.listener.stage(step, text, None))
        except (PhibuildError, OSError) as error:
            context.toolchain_errors[name] = str(error)
            failures.append(str(error))
