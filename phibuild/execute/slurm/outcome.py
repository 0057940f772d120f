"""What the jobs left, as the results, logs and history that a local run would have."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from functools import singledispatch
from pathlib import Path
from typing import TypeVar

from phibuild.config.executors import SlurmSettings
from phibuild.execute.context import Context, Original
from phibuild.execute.local.scheduler import History, Task, TaskRun
from phibuild.execute.runner.usage import Usage
from phibuild.execute.slurm.jobs import Job, Jobs
from phibuild.execute.slurm.remote import JobItem
from phibuild.planning.steps import BuildStep, MeasureStep, OriginalStep, Step

_LATE_SECONDS = 60.0
T = TypeVar("T")


def fold(context: Context, jobs: Jobs) -> None:
    """Put what all jobs left into the context, in the order of the plan's steps."""
    for original in context.plan.originals:
        if original.cached:
            fold_step(original, context, [], None, None)
    for step in context.plan.steps:
        some, refused = jobs.of.get(step.id, []), jobs.refused.get(step.id)
        log = _fetch_log(context, step, some)
        fold_step(step, context, some, refused, log)
        usage = Usage()
        for took in (job.found.usage for job in some if job.found):
            usage.cpu_seconds += took.cpu_seconds
            usage.loading_seconds += took.loading_seconds
            if took.peak_anonymous_bytes is not None:
                peak = max(took.peak_anonymous_bytes, usage.peak_anonymous_bytes or 0)
                usage.peak_anonymous_bytes = peak
        context.usage[step.id] = usage


@singledispatch
def fold_step(
    step: Step, context: Context, jobs: Sequence[Job], refused: str | None, log: Path | None
) -> None:
    """Put what a step's jobs left into the context; `refused` is why it got none."""
    raise NotImplementedError(step.kind)


@fold_step.register
def _original(
    step: OriginalStep, context: Context, jobs: Sequence[Job], refused: str | None, log: Path | None
) -> None:
    promised = step.cached or any(job.found and not job.found.problem for job in jobs)
    reasons = (_reason(job, JobItem()) for job in jobs)
    reason = next(filter(None, reasons), refused)
    for key in step.makes:
        folder = _see(lambda key=key: context.store.reference(key), promised)  # type: ignore[misc]
        if folder or reason:  # else Ctrl-C: what would have needed it says so
            context.originals[key] = Original(folder, None if folder else reason)


@fold_step.register
def _built(
    step: BuildStep, context: Context, jobs: Sequence[Job], refused: str | None, log: Path | None
) -> None:
    for artifact in step.artifacts:
        result = context.results[artifact.key]
        if log:
            result.logs.append(log)
        job = next((job for job in jobs if artifact.key in job.record.makes), None)
        item = _item(job, artifact.key)
        done = item.status in ("built", "cached")
        key = artifact.key
        if _see(lambda key=key: context.store.artifact(key), done):  # type: ignore[misc]
            # Without a job of its own, another phibuild made it since the plan.
            result.status = item.status if done else "built" if job else "cached"
            continue
        source = context.plan.source_of(step.model)
        inputs = _reason_of(context, source.key if source else None, *artifact.inputs)
        reason = inputs or _reason(job, item) or refused
        if reason:
            context.fail(artifact, reason)


@fold_step.register
def _judged(
    step: MeasureStep, context: Context, jobs: Sequence[Job], refused: str | None, log: Path | None
) -> None:
    original = context.plan.reference_of(step.model)
    before = _reason_of(context, original.key if original else None)
    for artifact in step.artifacts:
        result = context.results[artifact.key]
        if not result.is_there:
            continue
        if log:
            result.logs.append(log)
        key = artifact.measure_key or ""
        job = next((job for job in jobs if key in job.record.makes), None)
        item = _item(job, artifact.key)
        result.measure = item.measure or context.store.measure(key)
        if result.measure is None:
            reason = before or _reason(job, item) or refused
            if reason:
                context.fail(artifact, step.failing + reason.removeprefix(step.failing))


def _reason_of(context: Context, *keys: str | None) -> str | None:
    """Return why one of these steps of the original left nothing, None if all did or none ran."""
    found = [context.originals[key] for key in keys if key in context.originals]
    return next((original.reason for original in found if original.reason), None)


def _item(job: Job | None, artifact: str) -> JobItem:
    """Return what a job says of an artifact."""
    found = job.found.results if job and job.found else {}
    return found.get(artifact, JobItem())


def _reason(job: Job | None, item: JobItem) -> str | None:
    """Return why an artifact is not there: the step's words, with what Slurm adds to them."""
    if job is None:
        return None
    reason = item.reason or (job.found.problem if job.found else job.why)
    if reason and job.note:
        for words in ("killed by SIGKILL", "out of memory"):
            before, found, after = reason.partition(words)
            if found:
                return f"{before}{job.note}; {found}{after}"
    return reason


def _see(look: Callable[[], T | None], promised: bool) -> T | None:
    """Look for something in the store; what a job `promised` may take a while to be seen through
    a network file system."""
    deadline = time.monotonic() + (_LATE_SECONDS if promised else 0)
    while not (found := look()) and time.monotonic() < deadline:
        time.sleep(0.5)
    return found


def _fetch_log(context: Context, step: Step, jobs: Sequence[Job]) -> Path | None:
    """Copy the logs of a step's jobs into the run's folder, None if there are none."""
    log = context.logs / f"{step.id}.log"
    for job in jobs:
        for path in (job.folder / f"{step.id}.log", job.folder / f"{job.id}_0_log.err"):
            if path.exists() and path.stat().st_size:
                with path.open("rb") as source, log.open("ab") as target:
                    shutil.copyfileobj(source, target)
    return log if log.exists() else None


def make_history(
    context: Context, jobs: Jobs, settings: SlurmSettings, started: float, ended: float
) -> History:
    """Return what ran when, in seconds from `started` (both since the epoch): a step that was
    running before has a negative start. `queue` is time in which a job could have run and did
    not."""
    history = History()
    spans: dict[str, tuple[float, float]] = {}
    for step in context.plan.steps:
        some = [job for job in jobs.of.get(step.id, []) if job.began is not None]
        if not some:
            continue
        began = min(job.began or ended for job in some)
        spans[step.id] = began, max(job.ended or ended for job in some)
        ready = max(
            [job.record.submitted for job in some]
            + [spans[need][1] for need in context.plan.needs(step) if need in spans]
        )
        needs = frozenset({f"toolchain.{step.backend}"}) | context.plan.needs(step)
        memory = max(job.memory_bytes for job in some)
        history.ran[step.id] = TaskRun(
            Task(step.id, needs, settings.cores, memory, lambda alone: False),
            began - started,
            spans[step.id][1] - started,
            waited={"queue": max(0.0, began - ready)},
        )
    for name, (began, until) in spans.items():
        history.ran[name].concurrent.update(
            other
            for other, (start, end) in spans.items()
            if other != name and start < until and began < end
        )
    busy, last = 0.0, started
    for began, until in sorted(spans.values()):
        busy += max(0.0, until - max(last, began))
        last = max(last, until)
    history.bounds["work"] = busy
    history.bounds["queue"] = max(0.0, ended - started - busy)
    return history
