"""The scheduler: order of needs, cores and memory, a stop, and tasks that raise."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from phibuild.execute.local.scheduler import History, Limits, Task, run_tasks


@dataclass
class Watch:
    """Records what runs beside what."""

    seconds: float = 0.1
    events: list[tuple[str, str]] = field(default_factory=list)
    together: list[frozenset[str]] = field(default_factory=list)
    _running: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def task(self, id: str, *needs: str, cores: int = 1, memory: int = 0, times: int = 1) -> Task:
        def run(alone: bool) -> bool:
            with self._lock:
                self._running.add(id)
                self.events.append(("start", id))
                self.together.append(frozenset(self._running))
            time.sleep(times * self.seconds)
            with self._lock:
                self._running.discard(id)
                self.events.append(("end", id))
            return False

        return Task(id, frozenset(needs), cores, memory, run)

    def after(self, later: str, earlier: str) -> bool:
        return self.events.index(("start", later)) > self.events.index(("end", earlier))


def go(tasks: list[Task], *, cores: int = 4, memory: int = 100) -> list[str]:
    return run_tasks(tasks, Limits(cores, memory), stop=threading.Event())


def test_needs_come_first() -> None:
    watch = Watch()
    left = go([
        watch.task("measure", "build", "reference"),
        watch.task("build", "toolchain"),
        watch.task("reference", "toolchain"),
        watch.task("toolchain"),
        watch.task("free", "something that is no task"),
    ])  # fmt: skip
    assert left == []
    assert len(watch.events) == 10
    for later, earlier in (("build", "toolchain"), ("reference", "toolchain"),
                           ("measure", "build"), ("measure", "reference")):  # fmt: skip
        assert watch.after(later, earlier), (later, earlier)
    assert any({"build", "reference"} <= group for group in watch.together)


def test_cores_are_a_limit() -> None:
    watch = Watch()
    cost = {f"t{number}": 1 + number % 3 for number in range(12)}
    go([watch.task(id, cores=cores) for id, cores in cost.items()], cores=4)
    busy = [sum(cost[id] for id in group) for group in watch.together]
    assert max(busy) <= 4
    assert max(len(group) for group in watch.together) > 1


def test_memory_is_a_limit() -> None:
    watch = Watch()
    go([watch.task(f"t{number}", memory=40) for number in range(6)], cores=8, memory=100)
    assert max(len(group) for group in watch.together) == 2


def test_what_wants_more_than_there_is_runs_alone() -> None:
    watch = Watch()
    go([watch.task("a"), watch.task("huge", cores=99), watch.task("fat", memory=1000),
        watch.task("b")])  # fmt: skip
    assert len(watch.events) == 8
    for group in watch.together:
        assert group in ({"huge"}, {"fat"}) or not group & {"huge", "fat"}


def test_tasks_without_cores_wait_for_nobody() -> None:
    both = threading.Barrier(2, timeout=60)  # broken unless they run at the same time

    def meet(alone: bool) -> bool:
        both.wait()
        return False

    go([Task("huge", frozenset(), 99, 1000, meet), Task("download", frozenset(), 0, 0, meet)])
    assert not both.broken


def test_a_task_that_raises_is_a_defect_and_shows() -> None:
    watch = Watch(seconds=0.3)

    def fail(alone: bool) -> bool:
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        go([watch.task("slow"), Task("bad", frozenset(), 1, 0, fail), watch.task("next", "bad")])
    assert watch.events == [("start", "slow"), ("end", "slow")]  # it was waited for


def test_a_stop_starts_nothing_more() -> None:
    stop = threading.Event()
    ran: list[str] = []

    def task(id: str, *needs: str, work: Callable[[], None] = lambda: None) -> Task:
        def run(alone: bool) -> bool:
            ran.append(id)
            work()
            return False

        return Task(id, frozenset(needs), 1, 0, run)

    left = run_tasks(
        [task("a", work=stop.set), task("b", "a"), task("c", "b")],
        Limits(1, 1), stop=stop,
    )  # fmt: skip
    assert (ran, left) == (["a"], ["b", "c"])


def test_needs_that_can_never_be_met_are_refused() -> None:
    watch = Watch()
    with pytest.raises(ValueError, match="a, b"):
        go([watch.task("a", "b"), watch.task("b", "a")])


def test_what_runs_out_of_memory_is_run_again_alone_and_once() -> None:
    watch = Watch(seconds=0.3)
    asked: list[bool] = []

    def hungry(alone: bool) -> bool:
        watch.task("hungry").run(alone)
        asked.append(alone)
        return True

    lines: list[str] = []
    history = History()
    left = run_tasks(
        [Task("hungry", frozenset(), 1, 10, hungry), watch.task("beside", times=4),
         watch.task("later", "hungry"), *(watch.task(f"t{number}") for number in range(4))],
        Limits(2, 100), stop=threading.Event(), history=history, tell=lines.append,
    )  # fmt: skip
    assert left == []
    assert asked == [False, True]
    groups = [group for group in watch.together if "hungry" in group]
    assert groups[-1] == {"hungry"}  # nothing was started beside it
    ends = [number for number, event in enumerate(watch.events) if event == ("end", "hungry")]
    assert watch.events.index(("start", "later")) > ends[1]
    assert history.ran["hungry"].attempts == 2
    assert history.ran["beside"].attempts == 1
    assert "hungry ran out of memory" in lines
    assert any(line.startswith("hungry starts again, alone: ") for line in lines)
    assert any(line.startswith("hungry waits for memory: ") for line in lines)


def test_what_others_on_the_machine_take_counts() -> None:
    """With less memory there than the limit, tasks go one after the other, yet they go."""
    watch = Watch()
    tasks = [watch.task(f"t{number}", memory=40) for number in range(4)]
    limits = Limits(8, 100, lambda: 60)
    run_tasks(tasks, limits, stop=threading.Event())
    assert max(len(group) for group in watch.together) == 1
    assert len(watch.events) == 8


def test_the_log_tells_what_was_admitted_beside_what() -> None:
    watch = Watch(seconds=0.3)
    lines: list[str] = []
    tasks = [watch.task("a", memory=60 << 20), watch.task("b", memory=30 << 20),
             watch.task("c", memory=60 << 20)]  # fmt: skip
    run_tasks(tasks, Limits(4, 100 << 20), stop=threading.Event(), tell=lines.append)
    assert lines[:3] == [
        "a starts: 1 cores, 62.9 MB; nothing running with 0 of 4 cores, 0 B of 105 MB",
        "b starts: 1 cores, 31.5 MB; a running with 1 of 4 cores, 62.9 MB of 105 MB",
        "c waits for memory: 1 cores, 62.9 MB; a, b running with 2 of 4 cores, 94.4 MB of 105 MB",
    ]


def test_history_tells_what_ran_beside_what_and_what_held_the_others() -> None:
    watch = Watch(seconds=0.4)
    history = History()
    tasks = [
        watch.task("a", memory=60),
        watch.task("b", memory=30),
        watch.task("c", memory=60),  # waits for a's memory
        watch.task("d", "c", cores=4),
    ]
    run_tasks(tasks, Limits(4, 100), stop=threading.Event(), history=history)
    assert list(history.ran) == ["a", "b", "c", "d"]
    a, b, c, d = history.ran.values()
    assert a.concurrent >= {"b"}
    assert "a" not in c.concurrent
    assert d.concurrent == set()
    assert c.waited["memory"] > 0.2
    assert not a.waited
    assert not b.waited
    assert d.ended is not None
    assert a.started < b.started < c.started < d.started < d.ended
    assert set(history.bounds) == {"memory", "needs", "work"}
    assert sum(history.bounds.values()) == pytest.approx(d.ended, abs=0.1)
