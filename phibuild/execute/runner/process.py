"""One runner as a subprocess: request in, events out, log to a file; why it ended, in words."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from phibuild.execute.runner.events import End, Event, NoEvent, parse_event, read_lines
from phibuild.execute.runner.guard import Guard, kill_marked
from phibuild.execute.runner.usage import Usage

WORKER = Path(__file__).resolve().parents[2] / "worker" / "entry.py"
_GRACE_SECONDS = 5.0
_LOG_LINES = 6
_OUT_OF_MEMORY = "out of memory"


@dataclass
class Outcome:
    """How a runner ended: `crash` says why it did not end by itself, for lack of memory, of time or
    for another reason."""

    crash: str | None = None
    out_of_memory: bool = False
    timed_out: bool = False
    interrupted: bool = False


@dataclass
class Runners:
    """The runners that are alive, so that all can be ended at once. With a `guard` they end with
    phibuild, however it ends."""

    guard: Guard | None = None
    _alive: set[subprocess.Popen[bytes]] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    stopping: bool = False

    def add(self, process: subprocess.Popen[bytes]) -> None:
        with self._lock:
            self._alive.add(process)
            if self.guard:
                self.guard.watch(process.pid)
            if self.stopping:
                end_group(process)

    def remove(self, process: subprocess.Popen[bytes]) -> None:
        with self._lock:
            self._alive.discard(process)
            if self.guard:
                self.guard.forget(process.pid)

    def stop(self) -> None:
        """End all runners and let none start."""
        with self._lock:
            self.stopping = True
            alive = list(self._alive)
        for process in alive:
            end_group(process)

    def kill(self) -> None:
        """Kill all runners and their children at once; for a process that is about to end."""
        self.stopping = True
        for process in list(self._alive):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)


@dataclass(frozen=True)
class Runner:
    """A backend's runner, ready to be started: the toolchain's interpreter, the log that it adds
    to, the seconds that its step may take. `runners` knows those that are alive; what it takes is
    added to `usage`, its seconds to those that the step has had already; `mount` is the backend's
    `Plugin.mount`; `ends` is the time.monotonic() by which it must have ended in any case."""

    python: Path
    backend: str
    log: Path
    timeout: float
    runners: Runners = field(default_factory=Runners)
    usage: Usage = field(default_factory=Usage)
    mount: tuple[str, ...] = ()
    ends: float = math.inf

    @property
    def seconds_left(self) -> float:
        """How long it may run: what its step has left."""
        return min(self.timeout - self.usage.seconds, self.ends - time.monotonic())


def run_worker(
    runner: Runner, request: Mapping[str, object], on_event: Callable[[Event], None]
) -> Outcome:
    """Run one request in a toolchain and return what came of it. Never raises for what the
    runner does: a crash, a kill, a time-out or a garbled event is a `crash` in the outcome."""
    log, runners, usage, seconds = runner.log, runner.runners, runner.usage, runner.seconds_left
    outcome, late = Outcome(), f"timed out after {runner.timeout:g} s"
    if seconds <= 0:  # what ran before has taken it all
        return Outcome(late, timed_out=True, interrupted=runners.stopping)
    oom_before = _oom_kills()
    timed_out = threading.Event()
    mark = {"PHIBUILD_RUNNER": uuid.uuid4().hex}
    with log.open("ab") as log_file:
        log_start = log_file.tell()
        process = subprocess.Popen(
            # -P: the folder of entry.py is no place to import from.
            [str(runner.python), "-P", str(WORKER), runner.backend, *runner.mount],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log_file,
            env={**_environment(request), **mark, **(runners.guard.mark if runners.guard else {})},
            start_new_session=True,
        )

    def expire() -> None:
        timed_out.set()
        end_group(process)

    timer = threading.Timer(seconds, expire)
    timer.daemon = True
    timer.start()
    runners.add(process)

    def reap() -> None:
        # A child that outlives its runner would hold the event stream open.
        process.wait()
        end_group(process)

    threading.Thread(target=reap, daemon=True).start()
    ended = False
    with contextlib.ExitStack() as stack:
        # In this order at the end: the group, then those of its children that have left it.
        stack.enter_context(usage.watch(process.pid))
        stack.callback(kill_marked, mark)
        stack.callback(runners.remove, process)
        stack.callback(end_group, process)
        stack.callback(timer.cancel)
        assert process.stdin is not None  # opened as pipes above
        with contextlib.suppress(BrokenPipeError):  # it died at once; its exit status says why
            process.stdin.write(json.dumps(request).encode())
            process.stdin.close()
        for line in read_lines(process):
            try:
                event = parse_event(line)
            except NoEvent as error:
                outcome.crash = str(error)
                end_group(process)
                break
            match event:
                case End(cpu_seconds=cpu, loading_seconds=loading):
                    ended = True
                    usage.cpu_seconds += cpu
                    usage.loading_seconds += loading
                case _:
                    on_event(event)
        process.wait()
    assert process.stdout is not None
    process.stdout.close()
    if outcome.crash is None and not ended:
        if timed_out.is_set():
            outcome.crash, outcome.timed_out = late, True
        else:
            outcome.crash = _reason(process.returncode, oom_before, last_lines(log, log_start))
            outcome.out_of_memory = outcome.crash.startswith(_OUT_OF_MEMORY)
        outcome.interrupted = runners.stopping
    return outcome


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a runner and all its children: TERM, a grace period, then KILL."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + _GRACE_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _environment(request: Mapping[str, object]) -> dict[str, str]:
    """Return the environment of a runner: nothing of the core's Python leaks in, and native
    libraries take the threads that the step was given."""
    threads = str(request.get("threads", 1))
    drop = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    environ = {key: value for key, value in os.environ.items() if key not in drop}
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        environ[name] = threads
    environ["PYTHONUNBUFFERED"] = "1"
    environ["PYTHONUTF8"] = "1"
    return environ


def _reason(returncode: int, oom_before: int | None, tail: str) -> str:
    """Say why a runner ended without its last event: signal, memory, or the log's last lines."""
    if returncode < 0:
        try:
            name = signal.Signals(-returncode).name
        except ValueError:
            name = f"signal {-returncode}"
        what = f"killed by {name}"
        oom_after = _oom_kills()
        if returncode == -signal.SIGKILL and None not in (oom_before, oom_after):
            if oom_after != oom_before:
                what = f"{_OUT_OF_MEMORY}: the system killed the runner"
        elif returncode in (-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS):
            what = f"crashed ({name})"
    elif returncode == 0:
        what = "the runner ended without a result"
    else:
        what = f"the runner ended with exit code {returncode}"
    if "MemoryError" in tail or "can't allocate memory" in tail or "bad_alloc" in tail:
        what = f"{_OUT_OF_MEMORY}; {what}"
    return f"{what}\n{tail}" if tail else what


def last_lines(log: Path, start: int = 0) -> str:
    """Return the last lines of a log from byte `start` on, for an error message."""
    try:
        with log.open("rb") as file:
            file.seek(max(start, log.stat().st_size - 8192))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join([line for line in text.splitlines() if line.strip()][-_LOG_LINES:])


def _oom_kills() -> int | None:
    """Return the kernel's count of out-of-memory kills (Linux), None where there is none."""
    try:
        for line in Path("/proc/vmstat").read_text(encoding="ascii").splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    except OSError:
        pass  # not Linux
    return None
