"""Run a request of several items in one runner; a crash costs only the item that caused it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from phibuild.execute.runner.events import Event, Failed, Item, Stage
from phibuild.execute.runner.process import Outcome, Runner, run_worker


@dataclass(frozen=True)
class Reactions:
    """What is called with what a runner says of its items."""

    on_result: Callable[[str, Mapping[str, object]], None]
    on_failure: Callable[[str, str], None]
    on_stage: Callable[[Stage], None]


def run_items(
    runner: Runner,
    items: Sequence[str],
    request: Callable[[Sequence[str]], Mapping[str, object]],
    reactions: Reactions,
    *,
    alone: bool = True,
    again: bool = False,
) -> list[str]:
    """Run `items` together; after a crash, those that have no result yet one by one; a single item
    once more only if `again`. All of that within the time that the step has: when it is out,
    nothing is run again.

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
                    reactions.on_result(item, result)
                case Failed(item=item, error=error) if item in left:
                    left.remove(item)
                    reactions.on_failure(item, error)
                case Stage():
                    reactions.on_stage(event)

        return run_worker(runner, request(some), take)

    outcome = attempt(items)
    retry = again or len(items) > 1
    if outcome.out_of_memory and not alone:
        return left
    while left:
        item = left[0]
        if retry and not (outcome.interrupted or outcome.timed_out):
            outcome = attempt([item])
        if item in left:
            left.remove(item)
            reason = outcome.crash or "the runner said nothing about it"
            reactions.on_failure(item, "interrupted" if outcome.interrupted else reason)
    return []
