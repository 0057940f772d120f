"""Run steps in the order of their needs, as many side by side as cores and memory allow."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from typing import Literal

from phibuild.units import format_decimal

Bound = Literal["memory", "cores", "needs", "work", "queue"]
"""What keeps more from running: memory or cores that a ready task waits for, tasks that others
need, or nothing: all that is left is running; on a cluster, the scheduler's queue."""


@dataclass(frozen=True)
class Task:
    """A step ready to run: it starts when all of `needs` have ended, however they ended, and
    finds out for itself what they left. `run` is told whether nothing else runs (`alone`); it
    returns True if it ran out of memory beside others and is to be run again, alone. It must not
    raise for what the work does."""

    id: str
    needs: frozenset[str]
    cores: int
    memory_bytes: int
    run: Callable[[bool], bool]
    alone: bool = False


@dataclass
class TaskRun:
    """How a task went, in seconds: `started` and `ended` from the start of the run, `waited` how
    long it was ready and what it waited for; `beside` are the tasks that ran at the same time;
    `attempts` is 2 if it was run again, alone."""

    task: Task
    started: float
    ended: float | None = None
    attempts: int = 1
    waited: dict[Bound, float] = field(default_factory=dict)
    concurrent: set[str] = field(default_factory=set)


@dataclass
class History:
    """What ran when, and for how many seconds each bound was the one that held."""

    ran: dict[str, TaskRun] = field(default_factory=dict)
    bounds: dict[Bound, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Limits:
    """What tasks may take together. `available` tells how much of the memory there really is at
    the moment, with what the running tasks hold: others use the machine too (None: not asked)."""

    cores: int
    memory_bytes: int
    available: Callable[[], int] | None = None

    def memory_now(self) -> int:
        """Return the bytes that tasks may take together at the moment."""
        return min(self.memory_bytes, self.available()) if self.available else self.memory_bytes

    def bound(self, task: Task, running: Iterable[Task], memory: int) -> Bound | None:
        """Return what keeps the task from running beside the others within `memory` bytes, None
        if it fits."""
        busy = [other for other in running if other.cores]
        if task.cores == 0 or not busy:
            return None
        if task.alone or any(other.alone for other in busy):
            return "memory"
        if sum(other.memory_bytes for other in busy) + task.memory_bytes > memory:
            return "memory"
        if sum(other.cores for other in busy) + task.cores > self.cores:
            return "cores"
        return None


class _Queue:
    """The tasks of a run: waiting, running, ended."""

    def __init__(
        self, tasks: Sequence[Task], limits: Limits, history: History, tell: Callable[[str], None]
    ) -> None:
        self.waiting = list(tasks)
        self.running: dict[Future[bool], Task] = {}
        self._ended: set[str] = set()
        self._known = {task.id for task in tasks}
        self._limits = limits
        self._history = history
        self._tell = tell
        self._waited: dict[str, dict[Bound, float]] = {}
        self._held: dict[str, Bound] = {}
        self._began = self._last = time.monotonic()

    def start_what_fits(self, start: Callable[[Task], Future[bool]]) -> None:
        """Start every ready task that fits beside those that run; note what holds the others."""
        before, self._held = self._held, {}
        memory = self._limits.memory_now()
        for task in list(self.waiting):
            if not (task.needs & self._known) <= self._ended:
                continue
            bound = self._limits.bound(task, self.running.values(), memory)
            if bound is not None:
                self._held[task.id] = bound
                if before.get(task.id) != bound:
                    self._tell(f"{task.id} waits for {bound}: {self._wants(task)}")
                continue
            self.waiting.remove(task)
            self._note_start(task)
            self.running[start(task)] = task

    def _note_start(self, task: Task) -> None:
        beside = {other.id for other in self.running.values()}
        now = time.monotonic() - self._began
        ran = self._history.ran.setdefault(task.id, TaskRun(task, now))
        ran.attempts += task.alone
        ran.waited = self._waited.pop(task.id, ran.waited)
        ran.concurrent |= beside
        for other in beside:
            self._history.ran[other].concurrent.add(task.id)
        self._tell(f"{task.id} starts{' again, alone' if task.alone else ''}: {self._wants(task)}")

    def _wants(self, task: Task) -> str:
        """Say what a task wants, and what of the limits the running ones have."""
        busy = [other for other in self.running.values() if other.cores]
        cores = sum(other.cores for other in busy)
        memory = sum(other.memory_bytes for other in busy)
        names = ", ".join(other.id for other in busy) or "nothing"
        return (
            f"{task.cores} cores, {format_decimal(task.memory_bytes)}; {names} running with "
            f"{cores} of {self._limits.cores} cores, {format_decimal(memory)} of "
            f"{format_decimal(self._limits.memory_bytes)}"
        )

    def end(self, future: Future[bool]) -> None:
        """Take a task off; raises what it raised."""
        task = self.running.pop(future)
        if not future.exception() and future.result() and not task.alone:
            self._tell(f"{task.id} ran out of memory")
            self.waiting.insert(0, replace(task, alone=True))
            return
        self._ended.add(task.id)
        self._history.ran[task.id].ended = time.monotonic() - self._began
        self._tell(f"{task.id} ended")
        future.result()

    def pass_time(self) -> None:
        """Count the time since the last call for what held the waiting tasks then."""
        now = time.monotonic()
        spent, self._last = now - self._last, now
        for name, bound in self._held.items():
            waited = self._waited.setdefault(name, {})
            waited[bound] = waited.get(bound, 0.0) + spent
        held: Bound = "needs" if self.waiting else "work"
        for bound in ("cores", "memory"):
            if bound in self._held.values():
                held = bound
        self._history.bounds[held] = self._history.bounds.get(held, 0.0) + spent


def run_tasks(
    tasks: Sequence[Task],
    limits: Limits,
    *,
    stop: threading.Event,
    history: History | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> list[str]:
    """Run all tasks; return the ids of those that did not start because `stop` was set.

    A task that wants more than there is runs alone. An exception from a task is raised after
    the running ones have ended: it is a defect of phibuild. `history` is filled in as tasks start
    and end; `tell` gets a line for each start, wait and end.
    """
    queue = _Queue(tasks, limits, history if history is not None else History(), tell)
    with ThreadPoolExecutor(max_workers=max(4, limits.cores), thread_name_prefix="step") as pool:
        while queue.waiting or queue.running:
            if not stop.is_set():
                queue.start_what_fits(lambda task: pool.submit(task.run, task.alone))
            if not queue.running:
                if stop.is_set():
                    break
                names = ", ".join(task.id for task in queue.waiting)
                raise ValueError(f"tasks that need each other: {names}")
            # A short wait: a stop must be seen soon.
            done, _ = wait(queue.running, timeout=0.2, return_when=FIRST_COMPLETED)
            queue.pass_time()
            for future in done:
                queue.end(future)
    return [task.id for task in queue.waiting]
