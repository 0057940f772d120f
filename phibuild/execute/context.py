"""What the steps of one run share: plan, store, results, and how they tell of themselves."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from phibuild.errors import PhibuildError
from phibuild.execute.runner.events import Stage
from phibuild.execute.runner.items import Runner
from phibuild.execute.runner.process import Runners
from phibuild.execute.runner.usage import Usage
from phibuild.planning.steps import Artifact, Plan
from phibuild.store.store import Store
from phibuild.system.plugins import plugin
from phibuild.toolchains.environment import toolchain

RUN_AGAIN = "out of memory; it is run again, alone"


class Listener(Protocol):
    """Who is told how steps go: the progress display."""

    def started(self, step: str, what: str) -> None: ...

    def stage(self, step: str, stage: str, fraction: float | None) -> None: ...

    def noted(self, step: str, text: str) -> None: ...

    def ended(self, step: str, failed: str | None, seconds: float) -> None: ...


@dataclass
class Result:
    """What became of one artifact. `reason` says why it is not there or could not be judged."""

    artifact: Artifact
    status: str = "failed"
    reason: str | None = None
    measure: dict[str, Any] | None = None
    logs: list[Path] = field(default_factory=list)


@dataclass
class Context:
    """One run. `originals`: key of a step of the original -> the folder that it left, or why there
    is none; `toolchain_errors`: backend -> why its environment could not be made; `usage`: step ->
    what its runners took."""

    plan: Plan
    store: Store
    logs: Path
    listener: Listener
    timeout: float
    cores: int
    runners: Runners = field(default_factory=Runners)
    results: dict[str, Result] = field(default_factory=dict)
    originals: dict[str, Path | str] = field(default_factory=dict)
    toolchain_errors: dict[str, str] = field(default_factory=dict)
    usage: dict[str, Usage] = field(default_factory=dict)

    @contextlib.contextmanager
    def told(
        self, step: str, what: str, left: Callable[[], Iterable[Artifact]] = tuple
    ) -> Iterator[list[str]]:
        """Tell the listener of a step; what is put into the list is why it failed. An error that
        ends the step (a full disk) fails the artifacts that are `left`."""
        failures: list[str] = []
        started = time.monotonic()
        self.listener.started(step, what)
        try:
            yield failures
        except (PhibuildError, OSError) as error:
            failures.append(str(error))
            for artifact in left():
                self.fail(artifact, str(error))
        finally:
            self.listener.ended(step, failures[0] if failures else None, time.monotonic() - started)

    def lock(self, key: str) -> contextlib.AbstractContextManager[None]:
        """Hold a store entry's lock; an interrupted run does not wait for it."""
        return self.store.lock(key, lambda: self.runners.stopping)

    def runner(self, name: str, step: str) -> Runner:
        """Return the runner of a backend, ready to work for a step."""
        return Runner(
            toolchain(name).python,
            name,
            self.logs / f"{step}.log",
            self.timeout,
            self.runners,
            self.usage.setdefault(step, Usage()),
            plugin(name).mount,
        )

    def facts(self, model: str) -> Path | str | None:
        """Return the folder that the source step of a model left, or why there is none; None if it
        has not run."""
        step = self.plan.source_of(model)
        return self.originals.get(step.key) if step else None

    def stage(self, step: str, event: Stage) -> None:
        result = self.results.get(event.item or "")
        name = f"{result.artifact.variant.name}: " if result else ""
        self.listener.stage(step, name + event.stage, event.fraction)

    def fail(self, artifact: Artifact, reason: str) -> None:
        result = self.results[artifact.key]
        result.status, result.reason = "failed", reason
