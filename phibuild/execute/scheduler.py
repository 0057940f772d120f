"""Run steps in the order of their needs, as many side by side as cores and memory allow."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Literal

Bound = Literal["memory", "cores", "needs", "work", "queue"]
"""What keeps more from running: memory or cores that a ready task waits for, tasks that others
need, or nothing: all that is left is running; on a cluster, the scheduler's queue."""


@dataclass(frozen=True)
class Task:
    """A step ready to run: it starts when all of `needs` have ended, however they ended, and
    finds out for itself what they left. `run` must not raise for what the work does."""

    id: str
    needs: frozenset[str]
    cores: int
    memory_bytes: int
    run: Callable[[], None]


@dataclass
class Ran:
    """How a task went, in seconds: `started` and `ended` from the start of the run, `waited` how
    long it was ready and what it waited for; `beside` are the tasks that ran at the same time."""

    task: Task
    started: float
    ended: float | None = None
    waited: dict[Bound, float] = field(default_factory=dict)
    beside: set[str] = field(default_factory=set)


@dataclass
class History:
    """What ran when, and for how many seconds each bound was the one that held."""

    ran: dict[str, Ran] = field(default_factory=dict)
    bounds: dict[Bound, float] = field(default_factory=dict)


class _Queue:
    """The tasks of a run: waiting, running, ended."""

    def __init__(
        self, tasks: Sequence[Task], cores: int, memory_bytes: int, history: History
    ) -> None:
        self.waiting = list(tasks)
        self.running: dict[Future[None], Task] = {}
        self._ended: set[str] = set()
        self._known = {task.id for task in tasks}
        self._cores, self._memory = cores, memory_bytes
        self._history = history
        self._waited: dict[str, dict[Bound, float]] = {}
        self._held: dict[str, Bound] = {}
        self._began = self._last = time.monotonic()

    def start_what_fits(self, start: Callable[[Task], Future[None]]) -> None:
        """Start every ready task that fits beside those that run; note what holds the others."""
        self._held = {}
        for task in list(self.waiting):
            if not (task.needs & self._known) <= self._ended:
                continue
            bound = _bound(task, self.running.values(), self._cores, self._memory)
            if bound is not None:
                self._held[task.id] = bound
                continue
            self.waiting.remove(task)
            ran = Ran(
                task,
                time.monotonic() - self._began,
                waited=self._waited.pop(task.id, {}),
                beside={other.id for other in self.running.values()},
            )
            for other in self.running.values():
                self._history.ran[other.id].beside.add(task.id)
            self._history.ran[task.id] = ran
            self.running[start(task)] = task

    def end(self, future: Future[None]) -> None:
        task = self.running.pop(future)
        self._ended.add(task.id)
        self._history.ran[task.id].ended = time.monotonic() - self._began

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
    *,
    cores: int,
    memory_bytes: int,
    stop: threading.Event,
    cancel: Callable[[], None] = lambda: None,
    history: History | None = None,
) -> list[str]:
    """Run all tasks; return the ids of those that never started because `stop` was set.

    A task that wants more than there is runs alone. An exception from a task is raised after
    the running ones have ended: it is a defect of phibuild. On Ctrl-C `cancel` is called, which
    makes the running ones end early; KeyboardInterrupt is raised once they have. `history` is
    filled in as tasks start and end.
    """
    queue = _Queue(tasks, cores, memory_bytes, history if history is not None else History())
    with ThreadPoolExecutor(max_workers=max(4, cores), thread_name_prefix="step") as pool:
        try:
            while queue.waiting or queue.running:
                if not stop.is_set():
                    queue.start_what_fits(lambda task: pool.submit(task.run))
                if not queue.running:
                    if stop.is_set():
                        break
                    names = ", ".join(task.id for task in queue.waiting)
                    raise ValueError(f"tasks that need each other: {names}")
                # A short wait: the main thread must see Ctrl-C and a stop soon.
                done, _ = wait(queue.running, timeout=0.2, return_when=FIRST_COMPLETED)
                queue.pass_time()
                for future in done:
                    queue.end(future)
                    future.result()
        except KeyboardInterrupt:
            stop.set()
            cancel()  # leaving the pool waits for what runs
            raise
    return [task.id for task in queue.waiting]


def _bound(task: Task, running: Iterable[Task], cores: int, memory_bytes: int) -> Bound | None:
    """Return what keeps the task from running beside the others, None if it fits."""
    busy = [other for other in running if other.cores]
    if task.cores == 0 or not busy:
        return None
    if sum(other.memory_bytes for other in busy) + task.memory_bytes > memory_bytes:
        return "memory"
    if sum(other.cores for other in busy) + task.cores > cores:
        return "cores"
    return None
