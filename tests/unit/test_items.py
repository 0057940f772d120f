"""Runners as real processes: the real entry.py over a small backend that does as it is told."""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from phibuild.execute.runner import process
from phibuild.execute.runner.events import Stage
from phibuild.execute.runner.items import Reactions, run_items
from phibuild.execute.runner.process import Outcome, Runner, Runners, run_worker
from phibuild.execute.runner.usage import Usage, anonymous_bytes

PACKAGE = process.WORKER.parents[1]

BACKEND = '''
"""Does with each item what the request says."""
import os, signal, subprocess, sys, time
from pathlib import Path
from phibuild.worker.protocol import WorkerError

SHAPES = {
    "stage": '{"event": "stage"}',
    "list": '{"event": "item", "item": "KEY", "result": []}',
    "error list": '{"event": "failed", "item": "KEY", "error": [1]}',
    "nan": '{"event": "stage", "stage": "x", "fraction": NaN}',
    "unknown": '{"event": "hello"}',
}

def said(request):
    """Whether a child has written its number."""
    path = Path(request["source"]) / "child"
    return path.exists() and path.read_text()

def build(request, report):
    for item in request["items"]:
        key, what = item["item"], item["variant"]["name"]
        report.stage("working", 0.5, key)
        print("a library says something about", key)
        if what == "segv":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif what == "abort":
            os.abort()
        elif what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif what == "exit":
            os._exit(0)
        elif what == "exit 7":
            print("the last words", file=sys.stderr)
            sys.exit(7)
        elif what == "score":
            report.item(key, {"score": int(Path("/proc/self/oom_score_adj").read_text())})
        elif what == "large":
            block = bytearray(200 << 20)
            time.sleep(0.5)
            report.item(key, {"size": len(block)})
        elif what == "raise":
            raise MemoryError
        elif what == "silent":
            os.close(2)
            os.kill(os.getpid(), signal.SIGKILL)
        elif what == "garbage":
            report._stream.write("Segmentation fault (core dumped)\\n")
            report._stream.flush()
            time.sleep(60)
        elif what == "odd":
            report._stream.write('[1, 2]\\n')
            report._stream.flush()
            time.sleep(60)
        elif what == "bytes":
            os.write(report._stream.fileno(), b"\\xff\\xfe\\n")
            time.sleep(60)
        elif what == "deep":
            report._stream.write("[" * 200000 + "\\n")
            report._stream.flush()
            time.sleep(60)
        elif what == "endless":
            while True:
                report._stream.write("x" * 100000)
        elif what in SHAPES:
            report._stream.write(SHAPES[what].replace("KEY", key) + "\\n")
            report._stream.flush()
            time.sleep(60)
        elif what == "session":
            # A child in a session of its own that holds the streams of its parent.
            if os.fork() == 0:
                os.setsid()
                (Path(request["source"]) / "child").write_text(str(os.getpid()))
                time.sleep(120)
                os._exit(0)
            while not said(request):
                time.sleep(0.01)
            report.item(key, {"size": 1})
        elif what == "half":
            report._stream.write('{"event": "it')
            report._stream.flush()
            os._exit(0)
        elif what == "once":
            mark = Path(request["source"]) / f"{key}.tried"
            if not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            report.item(key, {"size": 1})
        elif what in ("grandchild", "orphan"):
            # A child that ignores TERM and holds the streams of its parent.
            child = os.fork()
            if child == 0:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                (Path(request["source"]) / "child").write_text(str(os.getpid()))
                time.sleep(120)
                os._exit(0)
            while not said(request):
                time.sleep(0.01)
            if what == "orphan":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(120)
        elif what == "sleep":
            time.sleep(120)
        elif what == "hang":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(120)
        elif what == "refuse":
            report.failed(key, WorkerError("this cannot be"))
        elif what == "error":
            try:
                {}["missing"]
            except KeyError as error:
                report.failed(key, error)
        elif what == "environment":
            report.item(key, {"path": sys.path, "threads": os.environ["OMP_NUM_THREADS"],
                              "environ": sorted(os.environ), "modules": sorted(sys.modules)})
        elif what == "nothing":
            pass
        else:
            report.item(key, {"size": len(key)})
'''


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package as far as a worker needs it, with one more backend."""
    package = tmp_path_factory.mktemp("copy") / "phibuild"
    (package / "backends" / "told").mkdir(parents=True)
    (package / "worker").mkdir()
    for name in (
        "worker/entry.py",
        "worker/json_values.py",
        "worker/lean.py",
        "worker/protocol.py",
        "worker/requests.py",
        "worker/pairing.py",
        "worker/stopping.py",
        "worker/__init__.py",
        "__init__.py",
        "backends/__init__.py",
    ):
        shutil.copyfile(PACKAGE / name, package / name)
    (package / "backends" / "told" / "__init__.py").touch()
    (package / "backends" / "told" / "worker.py").write_text(BACKEND, encoding="utf-8")
    return package / "worker" / "entry.py"


def build_request(folder: Path, items: dict[str, str]) -> dict[str, Any]:
    """Return a request by which the backend does with each item what its variant is called."""
    variant = {"backend": "told", "precision": "int4", "format": "none", "options": {}}
    entries = [
        {"item": key, "variant": {**variant, "name": what}, "output": str(folder)}
        for key, what in items.items()
    ]
    return {"verb": "build", "source": str(folder), "facts": "", "architecture": {}, "model": "m",
            "threads": 3, "items": entries}  # fmt: skip


@dataclass
class Run:
    """One call of run_items, and all that it said."""

    folder: Path
    timeout: float = 30.0
    runners: Runners = field(default_factory=Runners)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    stages: list[Stage] = field(default_factory=list)
    asked: list[list[str]] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    alone: bool = True
    retried: bool = False
    ends: float = math.inf
    again: list[str] = field(default_factory=list)

    @property
    def log(self) -> Path:
        return self.folder / "step.log"

    def __call__(self, **items: str) -> Run:
        def request(keys: Sequence[str]) -> dict[str, Any]:
            self.asked.append(list(keys))
            return build_request(self.folder, {key: items[key] for key in keys})

        def done(key: str, result: Mapping[str, object]) -> None:
            assert key not in self.results
            assert key not in self.failures
            self.results[key] = dict(result)

        def failed(key: str, reason: str) -> None:
            assert key not in self.results
            assert key not in self.failures
            self.failures[key] = reason

        python, step = Path(sys.executable), (self.timeout, self.runners, self.usage)
        self.again = run_items(
            Runner(python, "told", self.log, *step, ends=self.ends),
            list(items),
            request,
            Reactions(done, failed, self.stages.append),
            alone=self.alone,
            again=self.retried,
        )
        assert set(self.results) | set(self.failures) | set(self.again) >= set(items)
        return self


@pytest.fixture
def run(worker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    monkeypatch.setattr(process, "WORKER", worker)
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    yield Run(tmp_path)
    left = {child.pid for child in psutil.Process().children(recursive=True)} - before
    assert not left, "a runner is still there"


def gone(folder: Path) -> bool:
    pid = int((folder / "child").read_text(encoding="ascii"))
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False


def test_all_goes_well(run: Run) -> None:
    run(one="ok", three="ok")
    assert {key: result["size"] for key, result in run.results.items()} == {"one": 3, "three": 5}
    assert run.asked == [["one", "three"]]
    assert run.stages[0] == Stage(event="stage", stage="working", fraction=0.5, item="one")
    assert all(result["seconds"] >= 0 for result in run.results.values())
    assert run.results["one"]["peak_rss_bytes"] > 1 << 20
    # What libraries print on standard output is in the log, not among the events.
    assert "a library says something about three" in run.log.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("segv", "crashed (SIGSEGV)"),
        ("abort", "crashed (SIGABRT)"),
        ("kill", "killed by SIGKILL"),
        ("exit", "the runner ended without a result"),
        ("exit 7", "the runner ended with exit code 7\n"),
        ("raise", "out of memory; the runner ended with exit code 1"),
        ("garbage", "the runner wrote something that is no event: 'Segmentation fault"),
        ("odd", "the runner wrote something that is no event: '[1, 2]"),
        ("bytes", "the runner wrote something that is no event: '"),
        ("deep", "the runner wrote something that is no event: '[[[["),
        ("endless", "the runner wrote something that is no event: 'xxxx"),
        ("stage", "the runner wrote something that is no event: "),
        ("list", "the runner wrote something that is no event: "),
        ("error list", "the runner wrote something that is no event: "),
        ("nan", "the runner wrote something that is no event: "),
        ("unknown", "the runner wrote something that is no event: "),
        ("half", 'the runner wrote something that is no event: \'{"event": "it\''),
        ("nothing", "the runner said nothing about it"),
        ("refuse", "this cannot be"),
        ("error", "KeyError: 'missing'"),
    ],
)
def test_one_item_fails_with_the_reason(run: Run, what: str, reason: str) -> None:
    run(item=what)
    assert run.failures["item"].startswith(reason)
    assert run.asked == [["item"]]


def test_the_last_words_of_the_log_are_in_the_reason(run: Run) -> None:
    run(item="exit 7")
    assert run.failures["item"].splitlines()[-2:] == [
        "a library says something about item", "the last words",
    ]  # fmt: skip


def test_the_last_words_are_the_attempts_own(run: Run) -> None:
    run(one="exit 7", two="silent")
    assert "the last words" in run.failures["one"]
    assert "the last words" not in run.failures["two"]


@pytest.mark.parametrize("what", ["segv", "kill", "exit", "garbage", "raise"])
def test_a_crash_costs_only_the_item_that_caused_it(run: Run, what: str) -> None:
    run(before="ok", bad=what, after="ok", last="ok")
    assert set(run.results) == {"before", "after", "last"}
    assert set(run.failures) == {"bad"}
    # What was done before the crash is kept; the others are run alone.
    assert run.asked == [["before", "bad", "after", "last"], ["bad"], ["after"], ["last"]]


def test_a_crash_that_does_not_come_again_costs_nothing(run: Run) -> None:
    run(one="once", two="ok")
    assert set(run.results) == {"one", "two"}
    assert run.failures == {}


def test_every_item_may_crash(run: Run) -> None:
    run(one="segv", two="kill", three="exit")
    assert {key: reason.splitlines()[0] for key, reason in run.failures.items()} == {
        "one": "crashed (SIGSEGV)", "two": "killed by SIGKILL",
        "three": "the runner ended without a result",
    }  # fmt: skip


def test_what_memory_ran_out_for_beside_others_is_left_for_a_run_alone(run: Run) -> None:
    run.alone = False
    run(before="ok", large="raise", after="ok")
    assert set(run.results) == {"before"}
    assert run.failures == {}
    assert run.again == ["large", "after"]
    assert run.asked == [["before", "large", "after"]]


@pytest.mark.parametrize("what", ["kill", "segv", "exit"])
def test_other_crashes_beside_others_cost_the_same_as_alone(run: Run, what: str) -> None:
    run.alone = False
    run(bad=what, after="ok")
    assert (set(run.results), set(run.failures), run.again) == ({"after"}, {"bad"}, [])


def test_a_refusal_does_not_stop_the_others(run: Run) -> None:
    run(one="refuse", two="ok", three="error")
    assert (set(run.results), set(run.failures)) == ({"two"}, {"one", "three"})
    assert len(run.asked) == 1


def test_a_time_out_ends_the_runner_and_its_children(run: Run) -> None:
    run.timeout = 1.5
    started = time.monotonic()
    run(item="grandchild")
    assert run.failures["item"].startswith("timed out after 1.5 s")
    assert time.monotonic() - started < 12
    assert gone(run.folder)


def test_a_time_out_is_the_steps_and_not_an_items(run: Run) -> None:
    """Nothing is run again when it has come; what was finished is kept."""
    run.timeout = 4.0
    run(before="ok", bad="sleep", after="ok", last="ok")
    assert run.asked == [["before", "bad", "after", "last"]]
    assert set(run.results) == {"before"}
    assert run.failures == dict.fromkeys(("bad", "after", "last"), "timed out after 4 s")


def test_a_single_item_is_not_tried_again_after_a_time_out(run: Run) -> None:
    run.timeout, run.retried = 1.0, True
    run(item="sleep")
    assert run.failures == {"item": "timed out after 1 s"}
    assert len(run.asked) == 1


def test_what_crashes_takes_of_the_time_of_the_others(run: Run) -> None:
    """They are run alone with what is left of it."""
    run.timeout, run.usage.seconds = 1000.0, 997.0
    started = time.monotonic()
    run(bad="kill", slow="sleep", last="ok")
    assert time.monotonic() - started < 30
    assert run.asked == [["bad", "slow", "last"], ["bad"], ["slow"]]
    assert run.failures["bad"].startswith("killed by SIGKILL")
    assert run.failures["slow"] == run.failures["last"] == "timed out after 1000 s"


def test_a_step_without_time_left_starts_nothing(run: Run) -> None:
    """As when memory ran out beside others, after all the time."""
    run.timeout, run.usage.seconds = 10.0, 10.0
    run(one="ok", two="ok")
    assert run.failures == dict.fromkeys(("one", "two"), "timed out after 10 s")
    assert not run.log.exists()


def test_a_jobs_own_end_comes_before_the_time_is_out(run: Run) -> None:
    run.timeout, run.ends = 1000.0, time.monotonic() + 1.0
    run(item="sleep")
    assert run.failures == {"item": "timed out after 1000 s"}


def test_a_runner_that_ignores_the_polite_signal(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_GRACE_SECONDS", 0.5)
    run.timeout = 1.0
    run(item="hang")
    assert run.failures["item"].startswith("timed out")


def test_a_child_that_outlives_its_runner_does_not_hold_it_up(run: Run) -> None:
    """It has the event stream open; the runner's death is noticed all the same."""
    started = time.monotonic()
    run(item="orphan")
    assert run.failures["item"].startswith("killed by SIGKILL")
    assert time.monotonic() - started < 15
    assert gone(run.folder)


def test_a_child_that_has_left_for_a_session_of_its_own(run: Run) -> None:
    """It holds the event stream, and no signal to the runner's group reaches it."""
    if sys.platform != "linux":
        pytest.skip("descendants are found in /proc")
    started = time.monotonic()
    run(item="session")
    assert run.results["item"]["size"] == 1
    assert time.monotonic() - started < 20
    assert gone(run.folder)


def test_an_interruption_ends_what_runs_and_starts_nothing(run: Run) -> None:
    def interrupt() -> None:
        child, deadline = run.folder / "child", time.monotonic() + 60
        while not (child.exists() and child.read_text("ascii")) and time.monotonic() < deadline:
            time.sleep(0.02)
        run.runners.stop()

    thread = threading.Thread(target=interrupt)
    thread.start()
    run(one="grandchild", two="ok")
    thread.join()
    assert run.failures == {"one": "interrupted", "two": "interrupted"}
    assert len(run.asked) == 1
    assert gone(run.folder)
    run(late="grandchild")
    assert run.failures["late"] == "interrupted"


def test_nothing_of_the_core_leaks_into_a_runner(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTHONPATH", "VIRTUAL_ENV"):
        monkeypatch.setenv(name, "/nowhere")
    result = run(item="environment").results["item"]
    assert not {"PYTHONPATH", "VIRTUAL_ENV"} & set(result["environ"])
    assert "/nowhere" not in result["path"]
    assert str(process.WORKER.parent) not in result["path"]
    assert not {"pydantic", "hydra", "omegaconf", "numpy"} & set(result["modules"])
    assert result["threads"] == "3"


def test_what_a_runner_takes_is_known(run: Run) -> None:
    run(a="large")
    assert 0 < run.usage.cpu_seconds < 60
    if sys.platform == "linux":
        assert run.usage.peak_anonymous_bytes is not None
        assert 200 << 20 < run.usage.peak_anonymous_bytes < 400 << 20


def test_the_kernel_ends_runners_before_other_processes(run: Run) -> None:
    if sys.platform != "linux":
        pytest.skip("there is no /proc")
    assert run(a="score").results["a"]["score"] == 500


def test_memory_of_children_counts_and_a_forks_does_not() -> None:
    if sys.platform != "linux":
        pytest.skip("there is no /proc")
    program = """
import os, subprocess, sys, time
block = bytearray(100 << 20)
if not os.fork():
    time.sleep(60)
child = subprocess.Popen([sys.executable, "-c", "import time; b = bytearray(50 << 20); "
                          "print('ready', flush=True); time.sleep(60)"], stdout=subprocess.PIPE)
child.stdout.readline()
print("ready", flush=True)
time.sleep(60)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            found = anonymous_bytes(process.pid)
            assert found is not None
            assert 150 << 20 < found < 200 << 20
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def test_a_request_larger_than_a_pipe(run: Run) -> None:
    run(**{f"item{number:05}": "ok" for number in range(3000)})
    assert len(run.results) == 3000


def test_an_interpreter_that_dies_before_it_reads(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho broken environment >&2\nexit 3\n", encoding="ascii")
    script.chmod(0o755)
    runner = Runner(script, "told", run.log, 30)
    outcome: Outcome = run_worker(runner, {"items": "x" * 1_000_000}, lambda event: None)
    assert outcome.crash == "the runner ended with exit code 3\nbroken environment"


def test_a_runner_dies_with_phibuild(worker: Path, tmp_path: Path) -> None:
    """Even if phibuild is killed: the kernel ends the runner (Linux)."""
    if sys.platform != "linux":
        pytest.skip("PR_SET_PDEATHSIG is Linux's")
    request = build_request(tmp_path, {"a": "hang"})
    program = f"""
import sys
from pathlib import Path
from phibuild.execute.runner import process
process.WORKER = Path({str(worker)!r})
runner = process.Runner(Path(sys.executable), "told", Path({str(tmp_path / "log")!r}), 60)
process.run_worker(runner, {request!r}, lambda e: print(e.stage, flush=True))
"""
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    with parent:
        try:
            assert parent.stdout is not None
            assert parent.stdout.readline() == "working\n"
            (runner,) = psutil.Process(parent.pid).children()
            parent.kill()
            parent.wait()
            assert runner.wait(timeout=5) is None or not runner.is_running()
        finally:
            parent.kill()


def test_a_garbled_exit_status_has_a_name() -> None:
    assert process._reason(-64, None, "") == "killed by SIGRTMAX"
    assert process._reason(-65, None, "") == "killed by signal 65"
    assert process._reason(-9, 1, "") in (
        "killed by SIGKILL", "out of memory: the system killed the runner",
    )  # fmt: skip
    assert process._reason(-9, -1, "") == "out of memory: the system killed the runner" or (
        not os.path.exists("/proc/vmstat")
    )
