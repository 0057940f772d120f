"""The scheduler: order of needs, cores and memory, a stop, and tasks that raise."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from phibuild.execute.scheduler import History, Task, run_tasks


@dataclass
class Watch:
    """Records what runs beside what."""

    seconds: float = 0.1
    events: list[tuple[str, str]] = field(default_factory=list)
    together: list[frozenset[str]] = field(default_factory=list)
    _running: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def task(self, id: str, *needs: str, cores: int = 1, memory: int = 0) -> Task:
        def run() -> None:
            with self._lock:
                self._running.add(id)
                self.events.append(("start", id))
                self.together.append(frozenset(self._running))
            time.sleep(self.seconds)
            with self._lock:
                self._running.discard(id)
                self.events.append(("end", id))

        return Task(id, frozenset(needs), cores, memory, run)

    def after(self, later: str, earlier: str) -> bool:
        return self.events.index(("start", later)) > self.events.index(("end", earlier))


def go(tasks: list[Task], *, cores: int = 4, memory: int = 100) -> list[str]:
    return run_tasks(tasks, cores=cores, memory_bytes=memory, stop=threading.Event())


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

    def meet() -> None:
        both.wait()

    go([Task("huge", frozenset(), 99, 1000, meet), Task("download", frozenset(), 0, 0, meet)])
    assert not both.broken


def test_a_task_that_raises_is_a_defect_and_shows() -> None:
    watch = Watch(seconds=0.3)

    def fail() -> None:
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        go([watch.task("slow"), Task("bad", frozenset(), 1, 0, fail), watch.task("next", "bad")])
    assert watch.events == [("start", "slow"), ("end", "slow")]  # it was waited for


def test_a_stop_starts_nothing_more() -> None:
    stop = threading.Event()
    ran: list[str] = []

    def task(id: str, *needs: str, work: Callable[[], None] = lambda: None) -> Task:
        def run() -> None:
            ran.append(id)
            work()

        return Task(id, frozenset(needs), 1, 0, run)

    left = run_tasks(
        [task("a", work=stop.set), task("b", "a"), task("c", "b")],
        cores=1, memory_bytes=1, stop=stop,
    )  # fmt: skip
    assert (ran, left) == (["a"], ["b", "c"])


def test_needs_that_can_never_be_met_are_refused() -> None:
    watch = Watch()
    with pytest.raises(ValueError, match="a, b"):
        go([watch.task("a", "b"), watch.task("b", "a")])


PROGRAM = """
import threading, time
from phibuild.execute.scheduler import Task, run_tasks
ended = threading.Event()
def work():
    print("working", flush=True)
    ended.wait(25)
try:
    run_tasks([Task("a", frozenset(), 1, 0, work), Task("b", frozenset({"a"}), 1, 0, work)],
              cores=2, memory_bytes=1, stop=threading.Event(), cancel=ended.set)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def test_ctrl_c_cancels_what_runs() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    with process:
        try:
            assert process.stdout.readline() == "working\n"
            os.kill(process.pid, signal.SIGINT)
            started = time.monotonic()
            assert process.stdout.read() == "interrupted\n"  # and "b" never ran
            assert time.monotonic() - started < 15
            assert process.wait(timeout=20) == 0
        finally:
            process.kill()


def test_history_tells_what_ran_beside_what_and_what_held_the_others() -> None:
    watch = Watch(seconds=0.4)
    history = History()
    tasks = [
        watch.task("a", memory=60),
        watch.task("b", memory=30),
        watch.task("c", memory=60),  # waits for a's memory
        watch.task("d", "c", cores=4),
    ]
    run_tasks(tasks, cores=4, memory_bytes=100, stop=threading.Event(), history=history)
    assert list(history.ran) == ["a", "b", "c", "d"]
    a, b, c, d = history.ran.values()
    assert a.beside >= {"b"}
    assert "a" not in c.beside
    assert d.beside == set()
    assert c.waited["memory"] > 0.2
    assert not a.waited
    assert not b.waited
    assert d.ended is not None
    assert a.started < b.started < c.started < d.started < d.ended
    assert set(history.bounds) == {"memory", "needs", "work"}
    assert sum(history.bounds.values()) == pytest.approx(d.ended, abs=0.1)
