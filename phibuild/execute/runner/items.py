"""Run a request of several items in one runner; a crash costs only the item that caused it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from phibuild.execute.runner.events import Event, Failed, Item, Stage
from phibuild.execute.runner.process import Outcome, Runners, run_worker
from phibuild.execute.runner.usage import Usage


@dataclass(frozen=True)
class Runner:
    """A backend's runner, ready to be started. `runners` knows those that are alive; `usage` is
    what they take; `mount` is the backend's `Plugin.mount`."""

    python: Path
    backend: str
    log: Path
    timeout: float
    runners: Runners
    usage: Usage
    mount: tuple[str, ...] = ()


def run_items(
    runner: Runner,
    items: Sequence[str],
    request: Callable[[Sequence[str]], Mapping[str, object]],
    *,
    on_result: Callable[[str, Mapping[str, object]], None],
    on_failure: Callable[[str, str], None],
    on_stage: Callable[[Stage], None],
    alone: bool = True,
    again: bool = False,
) -> list[str]:
    """Run `items` together; after a crash, those that have no result yet one by one; a single item
    once more only if `again`.

    Calls `on_result` or `on_failure` exactly once for each item; results as they come. Unless the
    runner is `alone` on the machine, those that are left when it runs out of memory are returned
    instead: they deserve another run, alone.
    """
    left = list(items)

    def attempt(some: Sequence[str]) -> Outcome:
        def take(event: Event) -> None:
            match event:
                case Item(item=item, result=result) if item in left:
                    left.remove(item)
                    on_result(item, result)
                case Failed(item=item, error=error) if item in left:
                    left.remove(item)
                    on_failure(item, error)
                case Stage():
                    on_stage(event)

        return run_worker(
            runner.python,
            runner.backend,
            request(some),
            runner.log,
            runners=runner.runners,
            usage=runner.usage,
            timeout=runner.timeout,
            on_event=take,
            mount=runner.mount,
        )

    outcome = attempt(items)
    retry = again or len(items) > 1
    if outcome.out_of_memory and not alone:
        return left
    while left:
        item = left[0]
        if retry and not outcome.interrupted:
            outcome = attempt([item])
        if item in left:
            left.remove(item)
            reason = outcome.crash or "the runner said nothing about it"
            on_failure(item, "interrupted" if outcome.interrupted else reason)
    return []
