"""The local executor: a plan's steps as tasks on this machine, their results by artifact.

A step never raises for what its work does: it notes why an artifact failed and the others go on.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from phibuild.config.executors import ExecutorSettings
from phibuild.execute.context import Context, Listener, Result, left_by
from phibuild.execute.execution import (
    apply_refusals,
    install_toolchain,
    known_results,
    run_step,
)
from phibuild.execute.interrupts import stopped_gently
from phibuild.execute.local.scheduler import History, Limits, Task, run_tasks
from phibuild.execute.runner.guard import Guard
from phibuild.execute.runner.process import Runners
from phibuild.execute.runner.usage import Usage
from phibuild.planning.plan import Plan
from phibuild.planning.timing import machine_of
from phibuild.store.store import Store
from phibuild.system.machine import available_memory, cores, usable_memory

LOG = "executor.log"


@dataclass(frozen=True)
class Execution:
    """What came of a plan: results by artifact key, what ran when and what it took by step, the
    cores and bytes of memory that it was run within. `complete` is False if it was interrupted.
    On a cluster (`kind` slurm) these are a job's cores and the largest job's memory, and `places`
    has each step's job and node."""

    results: dict[str, Result]
    history: History
    usage: dict[str, Usage]
    cores: int
    memory_bytes: int
    complete: bool
    kind: Literal["local", "slurm"] = "local"
    places: Mapping[str, str] = field(default_factory=dict)


def run_plan(
    plan: Plan, store: Store, settings: ExecutorSettings, logs: Path, listener: Listener
) -> Execution:
    """Run all steps of a plan. `logs` is the folder for the steps' logs and for the log of what
    was started when, beside what."""
    history = History()
    with contextlib.ExitStack() as stack:
        guard = stack.enter_context(Guard()) if plan.steps else None
        log = stack.enter_context((logs / LOG).open("a", encoding="utf-8"))
        context = Context(
            plan=plan,
            store=store,
            logs=logs,
            listener=listener,
            timeout=settings.timeout,
            cores=settings.cores or cores(),
            machine=machine_of(settings),
            runners=Runners(guard),
            results=known_results(plan, store),
        )
        limits = _limits(context, settings)
        said = partial(listener.noted, "phibuild")
        stop = stack.enter_context(stopped_gently(context.runners, say=said))
        run_tasks(
            list(_tasks(context)),
            limits,
            stop=stop,
            history=history,
            tell=lambda text: print(time.strftime("%H:%M:%S"), text, file=log, flush=True),
        )
    apply_refusals(plan, context.results)
    for result in context.results.values():
        if result.status == "failed" and result.reason is None:
            result.reason = "interrupted"
    return Execution(
        context.results,
        history,
        context.usage,
        limits.cores,
        limits.memory_bytes,
        not stop.is_set(),
    )


def _limits(context: Context, settings: ExecutorSettings) -> Limits:
    if settings.memory:
        return Limits(context.cores, settings.memory)

    def available() -> int:
        held = sum(usage.anonymous_bytes for usage in list(context.usage.values()))
        return available_memory() + held

    return Limits(context.cores, usable_memory(), available)


def _tasks(context: Context) -> Iterator[Task]:
    plan = context.plan
    for name in plan.toolchains:

        def install(alone: bool, name: str = name) -> bool:
            install_toolchain(context, name)
            return False

        yield Task(f"toolchain.{name}", frozenset(), 0, 0, install)
    for original in plan.originals:
        for key in original.makes if original.cached else ():
            context.originals[key] = left_by(original, context, key)
    for step in plan.steps:
        threads = step.threads(context.cores)
        needs = {f"toolchain.{step.backend}", *plan.needs(step)}
        run = partial(run_step, step, context, threads)
        yield Task(step.id, frozenset(needs), threads, step.memory_bytes, run)
