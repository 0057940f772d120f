"""The local executor: a plan's steps as tasks on this machine, their results by artifact.

A step never raises for what its work does: it notes why an artifact failed and the others go on.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil

from phibuild.execute.context import Context, Listener, Result
from phibuild.execute.original import original_folder
from phibuild.execute.scheduler import History, Task, run_tasks
from phibuild.execute.steps import install_toolchain, known_results, step_function, step_needs
from phibuild.execute.usage import Usage
from phibuild.schema import ExecutorSettings
from phibuild.steps import REFERENCE_BACKEND, BackendStep, MeasureStep, Plan
from phibuild.store import Store

_MEMORY_MARGIN = 1 << 30


@dataclass(frozen=True)
class Execution:
    """What came of a plan: results by artifact key, what ran when and what it took by step, the
    cores and bytes of memory that it was run within. `complete` is False if Ctrl-C ended it.
    On a cluster (`kind` slurm) these are a job's cores and the largest job's memory, and `places`
    has each step's job and node."""

    results: dict[str, Result]
    history: History
    usage: dict[str, Usage]
    cores: int
    memory_bytes: int
    complete: bool
    kind: str = "local"
    places: Mapping[str, str] = field(default_factory=dict)


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
        results=known_results(plan, store),
    )
    memory = settings.memory or max(
        psutil.virtual_memory().available - _MEMORY_MARGIN, _MEMORY_MARGIN
    )
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
        yield Task(
            f"toolchain.{name}", frozenset(), 0, 0, partial(install_toolchain, context, name)
        )
    for original in plan.references:
        if original.cached:
            context.references[original.model] = original_folder(context, original)
    for inputs in plan.activations:
        if inputs.cached:
            context.activations[inputs.key] = original_folder(context, inputs)
    for step in plan.steps:
        alone = isinstance(step, MeasureStep)  # its figures of speed are reported
        backend = step.backend if isinstance(step, BackendStep) else REFERENCE_BACKEND
        yield Task(
            step.id,
            frozenset({f"toolchain.{backend}"}) | step_needs(plan, step),
            context.cores if alone else half,
            step.memory_bytes,
            step_function(context, step, half),
        )
