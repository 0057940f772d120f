"""Wait for jobs: one question to the scheduler for all of them, every few seconds.

A step's result is seen on the shared folder; the queue says of the others whether they still wait
or run. That slurmctld does not answer for a while ends nothing.
"""

from __future__ import annotations

import threading
import time

from phibuild.config.executors import SlurmSettings
from phibuild.execute.context import Listener
from phibuild.execute.slurm import commands
from phibuild.execute.slurm.commands import Queued, SlurmError
from phibuild.execute.slurm.explain import OUT_OF_MEMORY, end_state, explain
from phibuild.execute.slurm.jobs import Job, ended_now
from phibuild.execute.slurm.records import Records
from phibuild.execute.slurm.remote import read_result
from phibuild.execute.slurm.stages import show_stage
from phibuild.execute.slurm.submit import shown_limit, shown_memory

_LOOK_SECONDS = 1.0
# How long a result may take to be seen through a network file system after its job has ended.
_LATE_SECONDS = 15.0
_NO_LOCKS = (
    "the store's locks do not reach the nodes: builds from several machines may do the same work "
    "twice (docs/cluster.md, Locks)"
)
_USUAL = ("None", "Dependency", "Priority", "Resources", "BeginTime")


def wait_for_jobs(
    jobs: list[Job],
    settings: SlurmSettings,
    records: Records,
    listener: Listener,
    stop: threading.Event,
) -> None:
    """Return when all jobs have ended, or at a stop; each that has ended then has what it left, or
    why it left nothing."""
    asked = silent = float("-inf")
    locks = True
    told: set[str] = set()
    while (left := [job for job in jobs if job.ended is None]) and not stop.is_set():
        for job in left:
            job.found = read_result(job.folder)
            if job.found is not None:
                _end(job, None, settings, records, listener)
                if locks and job.mine and not job.found.lock_seen:
                    locks = False
                    listener.noted("slurm", _NO_LOCKS)
        left = [job for job in left if job.ended is None]
        if left and time.monotonic() - asked >= settings.poll:
            asked = time.monotonic()
            try:
                queue = commands.queue()
            except SlurmError as error:
                if asked - silent > 300:
                    listener.noted("slurm", f"does not answer: {error}; phibuild goes on asking")
                    silent = asked
                continue
            silent = float("-inf")
            for job in left:
                _see(job, queue.get(job.id), settings, records, listener)
                if job.ended is None and job.began is not None:
                    show_stage(job.folder, job.shown, listener)
        _tell_of_steps(jobs, told, listener)
        if any(job.ended is None for job in jobs):
            stop.wait(_LOOK_SECONDS)


def _tell_of_steps(jobs: list[Job], told: set[str], listener: Listener) -> None:
    """Tell of the steps of which no job is left, those in `told` excepted, and add them there."""
    left = {job.step.id for job in jobs if job.ended is None}
    for step in dict.fromkeys(job.step.id for job in jobs):
        if step not in left and step not in told:
            told.add(step)
            listener.over(step)


def _see(
    job: Job, queued: Queued | None, settings: SlurmSettings, records: Records, listener: Listener
) -> None:
    """Take note of what the queue shows of a job."""
    if queued is None or queued.name != job.record.name:
        job.missed += 1
        if job.missed > 1:  # once can be slurmctld starting anew
            _end(job, "", settings, records, listener)
        return
    job.missed = 0
    if not queued.active:
        _end(job, queued.state, settings, records, listener)
    elif queued.state == "PENDING":
        if job.began is not None:
            listener.ended(job.shown, None, time.time() - job.began)
            listener.noted(job.shown, "is in the queue again: Slurm starts it anew")
            job.began = None
        if queued.reason not in (*_USUAL, *job.noted):
            job.noted.add(queued.reason)
            listener.noted(job.shown, f"waits in the queue: {queued.reason}")
    elif queued.state == "RUNNING" and job.began is None:
        job.began, job.node = time.time(), queued.nodes
        listener.started(job.shown, f"runs on {queued.nodes}")


def _end(
    job: Job, state: str | None, settings: SlurmSettings, records: Records, listener: Listener
) -> None:
    """Complete a job that has ended: in `state` ("": not known), or with a result (None)."""
    deadline = time.monotonic() + _LATE_SECONDS
    while state in ("", "COMPLETED") and job.found is None and time.monotonic() < deadline:
        job.found = read_result(job.folder)
        time.sleep(0.2)
    if job.began is None:
        listener.started(job.shown, "has run" if job.found else "has ended")
    memory = shown_memory(settings, job.memory_bytes)
    if job.found is None:
        limit, state = shown_limit(settings), end_state(job.id, state)
        job.why = explain(job.id, state, job.folder, memory, limit)
    elif failure(job) and _final_state(job.id) == OUT_OF_MEMORY:
        job.note = f"out of memory: Slurm job {job.id} had {memory} (see executor.memory_margin)"
    for reason in failures(job):
        listener.failed(job.shown, reason)
    ended_now(job)
    records.forget(job.record)
    seconds = (job.ended or 0.0) - (job.began or job.ended or 0.0)
    listener.ended(job.shown, failure(job), seconds)


def failure(job: Job) -> str | None:
    """Return the first thing that went wrong in a job, None if nothing did."""
    return next(iter(failures(job)), None)


def failures(job: Job) -> list[str]:
    """Return what went wrong in a job."""
    reasons = [job.why]
    if job.found is not None:
        reasons = [job.found.problem, *(item.reason for item in job.found.results.values())]
    return list(dict.fromkeys(reason for reason in reasons if reason))


def _final_state(job: str) -> str:
    """Return the state of a job that has just written its result, once it has ended."""
    for _ in range(25):
        state = commands.job_facts(job).get("JobState", "")
        if state not in ("RUNNING", "COMPLETING"):
            break
        time.sleep(0.2)
    return end_state(job, state)
