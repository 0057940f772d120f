"""Run steps in the order of their needs, as many side by side as cores and memory allow."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """A step ready to run: it starts when all of `needs` have ended, however they ended, and
    finds out for itself what they left. `run` must not raise for what the work does."""

    id: str
    needs: frozenset[str]
    cores: int
    memory_bytes: int
    run: Callable[[], None]


def run_tasks(
    tasks: Sequence[Task],
    *,
    cores: int,
    memory_bytes: int,
    stop: threading.Event,
    cancel: Callable[[], None] = lambda: None,
) -> list[str]:
    """Run all tasks; return the ids of those that never started because `stop` was set.

    A task that wants more than there is runs alone. An exception from a task is raised after
    the running ones have ended: it is a defect of phibuild. On Ctrl-C `cancel` is called, which
    makes the running ones end early; KeyboardInterrupt is raised once they have.
    """
    waiting = list(tasks)
    ended: set[str] = set()
    running: dict[Future[None], Task] = {}
    known = {task.id for task in tasks}
    with ThreadPoolExecutor(max_workers=max(4, cores), thread_name_prefix="step") as pool:
        try:
            while waiting or running:
                if stop.is_set() and not running:
                    break
                if not stop.is_set():
                    for task in list(waiting):
                        if (task.needs & known) <= ended and _fits(
                            task, list(running.values()), cores, memory_bytes
                        ):
                            waiting.remove(task)
                            running[pool.submit(task.run)] = task
                if not running:
                    if stop.is_set():
                        break
                    names = ", ".join(task.id for task in waiting)
                    raise ValueError(f"tasks that need each other: {names}")
                # A short wait: the main thread must see Ctrl-C and a stop soon.
                done, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
                for future in done:
                    ended.add(running.pop(future).id)
                    future.result()
        except KeyboardInterrupt:
            stop.set()
            cancel()  # leaving the pool waits for what runs
            raise
    return [task.id for task in waiting]


def _fits(task: Task, running: Sequence[Task], cores: int, memory_bytes: int) -> bool:
    if task.cores == 0:
        return True
    busy = [other for other in running if other.cores]
    if not busy:
        return True
    return (
        sum(other.cores for other in busy) + task.cores <= cores
        and sum(other.memory_bytes for other in busy) + task.memory_bytes <= memory_bytes
    )
