"""The Slurm executor: each step of a plan as a job of its own, the same results as a local run.

The jobs keep their order by Slurm's own dependences and find out by themselves what the others
left, so that they go on without phibuild; a phibuild that is started again waits for them.
"""

from __future__ import annotations

import time
from pathlib import Path

from phibuild.errors import ConfigError, Problem
from phibuild.execute.context import Context, Listener
from phibuild.execute.local import Execution
from phibuild.execute.slurm.commands import Partition, SlurmError
from phibuild.execute.slurm.jobs import Jobs
from phibuild.execute.slurm.outcome import fold, make_history
from phibuild.execute.slurm.records import Records
from phibuild.execute.slurm.watch import wait_for_jobs
from phibuild.execute.steps import install_toolchain, known_results
from phibuild.schema import SlurmSettings
from phibuild.steps import Plan
from phibuild.store import Store


def run_plan(
    plan: Plan,
    store: Store,
    settings: SlurmSettings,
    partition: Partition | None,
    logs: Path,
    listener: Listener,
) -> Execution:
    """Run all steps of a plan as Slurm jobs. `partition` is where they go, if it is one; `logs` the
    folder for the steps' logs. Ctrl-C cancels the jobs, unless another phibuild waits for them."""
    context = Context(
        plan=plan,
        store=store,
        logs=logs,
        listener=listener,
        timeout=settings.timeout,
        cores=settings.cores,
        results=known_results(plan, store),
    )
    records = Records(store)
    jobs = Jobs(context, settings, partition, records)
    started, complete = time.time(), True
    with records.waiting():
        try:
            for name in plan.toolchains:
                install_toolchain(context, name)
            _submit(jobs)
            wait_for_jobs(jobs.all, settings, records, listener)
        except KeyboardInterrupt:
            complete = False
            listener.noted("slurm", "cancelling the jobs")
            try:
                jobs.cancel()
            except SlurmError as error:
                listener.noted("slurm", str(error))
    fold(context, jobs)
    if not complete:
        for result in context.results.values():
            if result.status == "failed" and result.reason is None:
                result.reason = "interrupted"
    return Execution(
        results=context.results,
        history=make_history(context, jobs, settings, started, time.time()),
        usage=context.usage,
        cores=settings.cores,
        memory_bytes=max((job.memory_bytes for job in jobs.all), default=0),
        complete=complete,
        kind="slurm",
        places={
            step: ", ".join(f"job {job.id} on {job.node or 'no node'}" for job in some)
            for step, some in jobs.of.items()
            if some
        },
    )


def _submit(jobs: Jobs) -> None:
    try:
        jobs.submit()
    except SlurmError as error:
        raise ConfigError(Problem(f"Slurm does not answer: {error}", "executor=slurm")) from error
