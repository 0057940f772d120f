"""The Slurm executor: each step of a plan as a job of its own, the same results as a local run.

The jobs keep their order by Slurm's own dependences and find out by themselves what the others
left, so that they go on without phibuild; a phibuild that is started again waits for them.
"""

from __future__ import annotations

import threading
import time
from functools import partial
from pathlib import Path

from phibuild.config.executors import SlurmSettings
from phibuild.errors import ConfigError, Problem, StoreError
from phibuild.execute.context import Context, Listener
from phibuild.execute.execution import apply_refusals, install_toolchain, known_results
from phibuild.execute.interrupts import stopped_gently
from phibuild.execute.local.executor import Execution
from phibuild.execute.slurm.commands import SlurmError
from phibuild.execute.slurm.jobs import Jobs
from phibuild.execute.slurm.outcome import fold, make_history
from phibuild.execute.slurm.records import Records
from phibuild.execute.slurm.watch import wait_for_jobs
from phibuild.planning.plan import Plan
from phibuild.planning.timing import machine_of
from phibuild.store.store import Store


def run_plan(
    plan: Plan,
    store: Store,
    settings: SlurmSettings,
    logs: Path,
    listener: Listener,
) -> Execution:
    """Run all steps of a plan as Slurm jobs. `logs` is the folder for the steps' logs. Ctrl-C and
    SIGTERM cancel the jobs, unless another phibuild waits for them; a lost terminal does not."""
    context = Context(
        plan=plan,
        store=store,
        logs=logs,
        listener=listener,
        timeout=settings.timeout,
        cores=settings.cores,
        machine=machine_of(settings),
        results=known_results(plan, store),
    )
    records = Records(store)
    started = time.time()
    said = partial(listener.noted, "phibuild")
    signals = ("SIGINT", "SIGTERM")
    with records.waiting(), stopped_gently(context.runners, signals, said) as stop:
        jobs = Jobs(context, settings, records, stop)
        for name in plan.toolchains:
            if not stop.is_set():
                install_toolchain(context, name)
        _submit(jobs, stop)
        for step, some in jobs.of.items():
            if not some:  # it was refused, or has nothing to do
                listener.over(step)
        wait_for_jobs(jobs.all, settings, records, listener, stop)
        if stop.is_set():
            listener.noted("slurm", "cancelling the jobs")
            try:
                jobs.cancel()
            except SlurmError as error:
                listener.noted("slurm", str(error))
    fold(context, jobs)
    apply_refusals(plan, context.results)
    for result in context.results.values():
        if result.status == "failed" and result.reason is None:
            result.reason = "interrupted"
    return Execution(
        results=context.results,
        history=make_history(context, jobs, settings, started, time.time()),
        usage=context.usage,
        cores=settings.cores,
        memory_bytes=max((job.memory_bytes for job in jobs.all), default=0),
        complete=not stop.is_set(),
        kind="slurm",
        places={
            step: ", ".join(f"job {job.id} on {job.node or 'no node'}" for job in some)
            for step, some in jobs.of.items()
            if some
        },
    )


def _submit(jobs: Jobs, stop: threading.Event) -> None:
    try:
        jobs.submit()
    except SlurmError as error:
        raise ConfigError(Problem(f"Slurm does not answer: {error}", "executor=slurm")) from error
    except StoreError:
        if not stop.is_set():  # else it was waiting for another phibuild
            raise
