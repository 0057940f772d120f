"""The jobs of a run: those that still run from before are joined, the others are submitted."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from phibuild.config.executors import SlurmSettings
from phibuild.execute.context import Context, job_name
from phibuild.execute.slurm import commands
from phibuild.execute.slurm.commands import SlurmError
from phibuild.execute.slurm.records import Record, Records
from phibuild.execute.slurm.remote import JobResult, RemoteStep
from phibuild.execute.slurm.submit import (
    complete_submission,
    job_memory,
    shown_memory,
    submit,
)
from phibuild.planning.code import program_digest
from phibuild.planning.steps import MeasureStep, Step
from phibuild.system.places import toolchains_folder


@dataclass
class Job:
    """A job that this run waits for; `mine`: it submitted it, too. `began` and `ended` are seconds
    since the epoch, None while not known; `found` is what the step left, `why` the reason if it
    left nothing, `note` what Slurm adds to its failures."""

    record: Record
    step: Step
    folder: Path
    memory_bytes: int
    mine: bool = False
    node: str = ""
    began: float | None = None
    ended: float | None = None
    found: JobResult | None = None
    why: str | None = None
    note: str | None = None
    missed: int = 0
    noted: set[str] = field(default_factory=set)

    @property
    def id(self) -> str:
        return self.record.job or ""

    @property
    def shown(self) -> str:
        """Its name on the display; a step may have several jobs."""
        return job_name(self.step.id, self.id)


class Jobs:
    """All jobs of a run: `of` by step id; `refused`: steps that got no job, and why."""

    def __init__(
        self,
        context: Context,
        settings: SlurmSettings,
        records: Records,
        stop: threading.Event,
    ) -> None:
        self.of: dict[str, list[Job]] = {}
        self.refused: dict[str, str] = {}
        self._context, self._settings = context, settings
        self._records, self._stop = records, stop
        self._lanes: list[list[str]] = [[] for _ in range(settings.max_jobs or 0)]

    @property
    def all(self) -> list[Job]:
        return [job for jobs in self.of.values() for job in jobs]

    def submit(self) -> None:
        """Join or submit a job for everything that is not in the store. Raises SlurmError if the
        queue cannot be read."""
        with self._records.lock(self._stop.is_set):
            self._records.sweep()
            live = self._live()
            for step in self._context.plan.steps:
                if not self._stop.is_set():
                    self._take(step, live)

    def cancel(self) -> None:
        """Cancel the jobs that no other phibuild waits for. Raises SlurmError with what is left
        to do if that fails."""
        with self._records.lock():
            alone = [job for job in self.all if job.ended is None]
            alone = [job for job in alone if self._records.leave(job.record)]
            names = [job.record.name for job in alone if not job.id]
            try:
                commands.cancel((job.id for job in alone if job.id), names)
            except SlurmError as error:
                ids = " ".join(sorted(job.id for job in alone))
                raise SlurmError(f"jobs could not be cancelled ({error}): scancel {ids}") from error
            for job in alone:
                self._records.remove(job.record)

    def _live(self) -> list[Record]:
        """Return the records whose jobs wait or run; those of ended jobs are removed."""
        queue = commands.queue()
        by_name = {queued.name: queued for queued in queue.values()}
        live = []
        for record in self._records.all():
            # By its name: a job id may be another's after slurmctld has lost its state.
            queued = by_name.get(record.name)
            if queued is None or not queued.active:
                self._records.remove(record)
                continue
            if record.job is None:
                complete_submission(self._records.path(record), queued.id)
            live.append(replace(record, job=queued.id))
        return live

    def _take(self, step: Step, live: Iterable[Record]) -> None:
        store = self._context.store
        wanted = {key for key in step.makes if not step.is_made(store, key)}
        jobs = self.of.setdefault(step.id, [])
        for record in live:
            if wanted & set(record.makes):
                wanted -= set(record.makes)
                folder = self._records.path(record)
                job = Job(self._records.wait_for(record), step, folder, self._memory(step))
                jobs.append(job)
                self._lane(job.id)
                self._context.listener.noted(step.id, f"waits for Slurm job {job.id} of before")
        if step.kind == MeasureStep.kind:
            wanted &= self._to_come(step)
        if not wanted:
            return
        reason = self._context.toolchain_errors.get(step.backend)
        if reason is None:
            try:
                self._submit(step, wanted)
            except SlurmError as error:
                reason = f"Slurm refuses the job: {error}"
        if reason is not None:
            self.refused[step.id] = reason
            self._context.listener.started(step.id, "is not submitted")
            self._context.listener.ended(step.id, reason, 0.0)

    def _to_come(self, step: Step) -> set[str]:
        """Return the measurements whose artifact and original are there or will be."""
        store, plan = self._context.store, self._context.plan
        for original in plan.references:
            there = store.reference(original.key) or self.of.get(original.id)
            if original.model == step.model and not there:
                return set()
        coming = {
            key
            for build in plan.builds
            for job in self.of.get(build.id, ())
            for key in job.record.makes
        }
        return {
            key
            for key, artifact in step.makes.items()
            if artifact in coming or store.artifact(artifact)
        }

    def _submit(self, step: Step, wanted: set[str]) -> None:
        small = step.part_for(wanted)
        record = self._records.new(step.id, wanted)
        job = Job(record, step, self._records.path(record), self._memory(step), mine=True)
        # Listed first: a stop while sbatch runs must find it.
        self.of[step.id].append(job)
        task = RemoteStep(
            plan=self._context.plan.only(small),
            step=small,
            store=self._context.store.root,
            toolchains=toolchains_folder(),
            folder=job.folder,
            program=program_digest(step.backend, self._context.store),
            waiter=self._records.waiter,
            machine=self._context.machine,
            timeout=self._settings.timeout,
            cores=self._settings.cores,
        )
        alone = step.takes_machine and self._settings.exclusive
        after = self._after(step)
        try:
            number = submit(
                task, self._settings, record.name, job.memory_bytes, after, exclusive=alone
            )
        except SlurmError:
            if self._stop.is_set():  # Ctrl-C may have ended sbatch after it had submitted
                return
            self.of[step.id].remove(job)
            self._records.remove(record)
            shutil.rmtree(job.folder, ignore_errors=True)
            raise
        job.record = replace(record, job=number)
        self._records.write(job.record)
        self._lane(number)
        what = f"is Slurm job {number}: {self._settings.cores} cores, "
        what += shown_memory(self._settings, job.memory_bytes)
        self._context.listener.noted(step.id, what)

    def _after(self, step: Step) -> Sequence[str]:
        """Return the ids of the jobs that must have ended before a step's job starts."""
        needs = sorted(self._context.plan.needs(step))
        after = [job.id for need in needs for job in self.of.get(need, ())]
        if self._lanes:
            after += min(self._lanes, key=len)[-1:]
        return list(dict.fromkeys(after))

    def _lane(self, job: str) -> None:
        # Slurm itself keeps the limit, also without phibuild: as many rows of jobs as may run at
        # once, each starting when the one before it in its row has ended.
        if self._lanes:
            min(self._lanes, key=len).append(job)

    def _memory(self, step: Step) -> int:
        return job_memory(self._settings, step.memory_bytes)


def ended_now(job: Job) -> None:
    """Note that a job has ended, at the time that its step says or else now."""
    if job.found:
        job.began, job.ended, job.node = job.found.started, job.found.ended, job.found.node
    else:
        job.ended = time.time()
