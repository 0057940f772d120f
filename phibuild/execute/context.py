"""What the steps of one run share: plan, store, results, and how they tell of themselves."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from phibuild.errors import PhibuildError
from phibuild.execute.runner.events import Stage
from phibuild.execute.runner.process import Runner, Runners
from phibuild.execute.runner.usage import Usage
from phibuild.planning.plan import Plan
from phibuild.planning.steps import PlannedArtifact, Step
from phibuild.store.documents import Measure
from phibuild.store.store import Store
from phibuild.system.plugins import plugin
from phibuild.toolchains.environment import toolchain

_RUN_AGAIN = "out of memory; it is run again, alone"
_NOT_READ = "the source has not been read"
_NOT_KEPT = "what it left is not in the store as it was written"
_JOB = " (job "


class Listener(Protocol):
    """Who is told how steps go: the progress display. `step` is a step's id; on a cluster, where a
    step may have several jobs, `job_name`."""

    def started(self, step: str, what: str) -> None: ...

    def stage(self, step: str, stage: str, fraction: float | None) -> None: ...

    def noted(self, step: str, text: str) -> None: ...

    def failed(self, step: str, reason: str) -> None:
        """Something of a running step has failed; the rest of it goes on."""

    def ended(self, step: str, failed: str | None, seconds: float) -> None: ...

    def over(self, step: str) -> None:
        """Nothing of a step of the plan is left to do, whether it had anything to do or not."""


def job_name(step: str, job: str) -> str:
    """Return what a step's job is called on the display."""
    return f"{step}{_JOB}{job})"


def step_of(name: str) -> str:
    """Return the step of a name on the display."""
    return name.rpartition(_JOB)[0] or name


@dataclass
class Attempt:
    """One go at a step, with so many threads, `alone` on the machine or beside other steps; then
    why it failed, and whether memory ran out beside others: it deserves another, alone."""

    threads: int
    alone: bool = True
    failures: list[str] = field(default_factory=list)
    again: bool = False

    def run_out_of_memory(self) -> None:
        self.again = True
        self.failures.append(_RUN_AGAIN)


@dataclass(frozen=True)
class Original:
    """What a step of the original left: a folder in the store, or the reason why there is none."""

    folder: Path | None = None
    reason: str | None = None


@dataclass
class Result:
    """What became of one artifact. `reason` says why it is not there or could not be judged."""

    artifact: PlannedArtifact
    status: Literal["built", "cached", "failed"] = "failed"
    reason: str | None = None
    measure: Measure | None = None
    logs: list[Path] = field(default_factory=list)

    @property
    def is_there(self) -> bool:
        """Whether the artifact is in the store."""
        return self.status in ("built", "cached")


@dataclass
class Context:
    """One run. `originals`: key of a step of the original -> what it left; `toolchain_errors`:
    backend -> why its environment could not be made; `usage`: step -> what its runners took;
    `machine`: what times are remembered of; `timeout`: seconds that the runners of a step may take
    together; `ends`: the time.monotonic() by which all must have ended."""

    plan: Plan
    store: Store
    logs: Path
    listener: Listener
    timeout: float
    cores: int
    machine: str = ""
    runners: Runners = field(default_factory=Runners)
    results: dict[str, Result] = field(default_factory=dict)
    originals: dict[str, Original] = field(default_factory=dict)
    toolchain_errors: dict[str, str] = field(default_factory=dict)
    usage: dict[str, Usage] = field(default_factory=dict)
    ends: float = math.inf

    @contextlib.contextmanager
    def shown(
        self,
        step: Step,
        attempt: Attempt,
        what: str,
        is_left: Callable[[Result], bool] = lambda result: False,
    ) -> Iterator[None]:
        """Show the listener that a step does `what`, and how it ended. An error that ends the step
        (a full disk) fails those of its artifacts that are left by then."""
        started = time.monotonic()
        self.listener.started(step.id, what)
        try:
            yield
        except (PhibuildError, OSError) as error:
            attempt.failures.append(str(error))
            for artifact in step.artifacts:
                if is_left(self.results[artifact.key]):
                    self.fail(artifact, str(error))
        finally:
            failed = attempt.failures[0] if attempt.failures else None
            self.listener.ended(step.id, failed, time.monotonic() - started)

    def lock(self, key: str) -> contextlib.AbstractContextManager[None]:
        """Hold a store entry's lock; an interrupted run does not wait for it."""
        return self.store.lock(key, lambda: self.runners.stopping)

    def runner(self, step: Step) -> Runner:
        """Return the runner of a step's backend."""
        return Runner(
            toolchain(step.backend).python,
            step.backend,
            self.logs / f"{step.id}.log",
            self.timeout,
            self.runners,
            self.usage.setdefault(step.id, Usage()),
            plugin(step.backend).mount,
            self.ends,
        )

    def source_facts(self, model: str) -> Original:
        """Return what the source step of a model left."""
        step = self.plan.source_of(model)
        return self.originals.get(step.key if step else "", Original(reason=_NOT_READ))

    def failure(self, step: Step, attempt: Attempt, reason: str) -> None:
        """Note a failure in a step, and tell of it at once."""
        attempt.failures.append(reason)
        self.listener.failed(step.id, reason)

    def stage(self, step: Step, event: Stage) -> None:
        result = self.results.get(event.item or "")
        name = f"{result.artifact.variant.name}: " if result else ""
        self.listener.stage(step.id, name + event.stage, event.fraction)

    def fail(self, artifact: PlannedArtifact, reason: str) -> None:
        result = self.results[artifact.key]
        result.status, result.reason = "failed", reason


def left_by(step: Step, context: Context, key: str, reason: str | None = None) -> Original:
    """Return what a step of the original left under a key; `reason` is why it may have left
    nothing."""
    folder = context.store.reference(key)
    return Original(folder, None if folder else reason or f"{step.failing}{_NOT_KEPT}")
