"""How long a plan is likely to take: what its steps are expected to, run as the executor would."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from phibuild.config.executors import ExecutorSettings, SlurmSettings
from phibuild.execute.local.scheduler import Limits, Task
from phibuild.planning.plan import Plan
from phibuild.planning.timing import Expected, Times, machine_of
from phibuild.store.store import Store
from phibuild.system.machine import cores, usable_memory

_WITHOUT_LIMIT = 2**62


@dataclass(frozen=True)
class Left:
    """What is left of a plan: seconds, not counting the `unknown` steps of which nothing is
    known."""

    seconds: float
    unknown: int


@dataclass(frozen=True)
class Forecast:
    """The steps of a plan as tasks, in their order, what each is expected to take (None: not
    known), and what they may take together. `cores` is what a step can have at most."""

    tasks: Mapping[str, Task]
    expected: Mapping[str, Expected | None]
    limits: Limits
    cores: int

    def seconds(self, step: str) -> float | None:
        """Return what a step is expected to take, None if that is not known."""
        found = self.expected.get(step)
        return found.seconds if found else None

    def left(self, running: Mapping[str, float] | None = None, over: Collection[str] = ()) -> Left:
        """Return how long what is left will take, by starting steps as the executor does.
        `running` are steps that run, and for how many seconds they have; `over` those of which
        nothing is left."""
        ran = running or {}
        now, done = 0.0, {*over}
        ends = {
            name: max((self.seconds(name) or 0.0) - ran[name], 0.0)
            for name in self.tasks
            if name in ran and name not in done
        }
        waiting = [task for name, task in self.tasks.items() if name not in done | ends.keys()]
        unknown = sum(self.seconds(name) is None for name in self.tasks.keys() - done)
        while waiting or ends:
            for task in list(waiting):
                if task.needs & self.tasks.keys() <= done:
                    beside = [self.tasks[name] for name in ends]
                    if self.limits.bound(task, beside, self.limits.memory_bytes) is None:
                        waiting.remove(task)
                        ends[task.id] = now + (self.seconds(task.id) or 0.0)
            if not ends:
                break  # what is left needs what no plan has: nothing of it will run
            now = max(now, min(ends.values()))
            over_now = [name for name, end in ends.items() if end <= now]
            done.update(over_now)
            for name in over_now:
                del ends[name]
        return Left(now, unknown)


def forecast(plan: Plan, settings: ExecutorSettings | SlurmSettings, store: Store) -> Forecast:
    """Return the forecast of a plan, by what the store knows."""
    times = Times(store, machine_of(settings))
    tasks, expected = {}, {}
    most = settings.cores or cores()
    for step in plan.steps:
        threads = most if settings.kind == "slurm" else step.threads(most)
        # On a cluster a step has a machine of its own; there may be a limit to their number.
        wants = (1, 0) if settings.kind == "slurm" else (threads, step.memory_bytes)
        tasks[step.id] = Task(step.id, plan.needs(step), *wants, lambda alone: False)
        expected[step.id] = times.expected(step, plan, threads)
    return Forecast(tasks, expected, _limits(settings, most), most)


def _limits(settings: ExecutorSettings | SlurmSettings, most: int) -> Limits:
    match settings:
        case SlurmSettings(max_jobs=jobs):
            return Limits(jobs or _WITHOUT_LIMIT, _WITHOUT_LIMIT)
        case ExecutorSettings(memory=memory):
            return Limits(most, memory or usable_memory())
