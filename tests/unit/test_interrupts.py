"""Signals: one stops gently, two at once; runners and their children end with phibuild."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")

# A runner that ignores TERM, with a child of its own, under a process that stops gently.
PROGRAM = """
import os, subprocess, sys, threading, time
from phibuild.execute.runner import process
from phibuild.execute.runner.guard import Guard
from phibuild.execute.interrupts import stopped_gently
from phibuild.execute.runner.process import Runners
process._GRACE_SECONDS = float(sys.argv[1])
stray = "import os, time; os.setsid(); time.sleep(120)"
child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(120)"
start = "subprocess.Popen([sys.executable, '-c', {!r}])".format
more = start(stray) if sys.argv[2] else "pass"
runner = f"import subprocess, sys; {start(child)}; {more}; {child}"
with Guard() as guard:
    runners = Runners(guard)
    with stopped_gently(runners) as stop:
        process = subprocess.Popen([sys.executable, "-c", runner], start_new_session=True,
                                   env={**os.environ, **guard.mark})
        runners.add(process)
        print("ready", flush=True)
        while not stop.is_set():
            time.sleep(0.01)
        print("stopping", flush=True)
        process.wait()
        runners.remove(process)
print("reported", flush=True)
"""


@contextmanager
def program(
    grace: float, *, stray: bool = False
) -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process]]]:
    """Start the program; give it and its descendants, among them one in a session of its own if
    `stray`."""
    words = [sys.executable, "-c", PROGRAM, str(grace), "stray" if stray else ""]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            deadline = time.monotonic() + 20
            found: list[psutil.Process] = []
            while len(found) < 3 + stray and time.monotonic() < deadline:
                found = psutil.Process(process.pid).children(recursive=True)
                time.sleep(0.05)
            assert len(found) == 3 + stray
            time.sleep(0.3)  # until TERM is ignored
            yield process, found
        finally:
            process.kill()


def all_gone(processes: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=10)
    return not [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_one_signal_stops_gently(number: signal.Signals) -> None:
    with program(0.5) as (process, others):
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
        assert out == "stopping\nreported\n"
        assert err.startswith("stopping: what runs is ended, then the report is written")
        assert process.returncode == 0
        assert all_gone(others)


def test_two_signals_stop_at_once() -> None:
    with program(60.0) as (process, others):
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        assert process.stdout.readline() == "stopping\n"
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=30)
        assert out == ""
        assert process.returncode == 130
        assert time.monotonic() - started < 20
        assert all_gone(others)


@pytest.mark.parametrize("stray", [False, True])
def test_nothing_outlives_a_kill(stray: bool) -> None:
    if stray and sys.platform != "linux":
        pytest.skip("environments are read from /proc")
    with program(60.0, stray=stray) as (process, others):
        process.kill()
        process.communicate(timeout=30)
        assert all_gone(others)


def test_a_run_goes_on_without_its_guard() -> None:
    with program(0.5) as (process, others):
        (guard,) = [one for one in others if any("guard.py" in word for word in one.cmdline())]
        guard.kill()
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=30)
        assert out == "stopping\nreported\n"


def test_what_is_ignored_stays_ignored(tmp_path: Path) -> None:
    """As nohup has it."""
    script = tmp_path / "nohup.sh"
    words = f"trap '' HUP; exec {sys.executable} -c \"$1\" 0.5 ''"
    script.write_text(words, encoding="utf-8")
    with subprocess.Popen(
        ["sh", script, PROGRAM], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            os.kill(process.pid, signal.SIGHUP)
            time.sleep(0.5)
            assert process.poll() is None
            os.kill(process.pid, signal.SIGINT)
            assert process.communicate(timeout=30)[0] == "stopping\nreported\n"
        finally:
            process.kill()


# argparse takes down in its `finally` what it had not set up yet.
PARSING = """
import argparse, os, signal, sys
real = argparse.HelpFormatter.format_help
def format_help(self):
    argparse.HelpFormatter.format_help = real
    os.kill(os.getpid(), signal.SIGINT)
    return real(self)
argparse.HelpFormatter.format_help = format_help
from phibuild.cli import main
main(["plan", "recipe=mobile"])
"""


def test_a_ctrl_c_while_words_are_read_is_no_traceback() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PARSING], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_a_failure_that_nothing_interrupted_is_shown() -> None:
    code = (
        "from phibuild import cli\n"
        "def run_command(words):\n"
        "    try: {}['x']\n"
        "    finally: raise AttributeError('mine')\n"
        "cli.run_command = run_command\n"
        "cli.main([])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.endswith("AttributeError: mine\n")


def test_a_ctrl_c_while_python_ends_is_no_traceback() -> None:
    """What has been said already is all that there is to say."""
    program = (
        "import atexit, os, signal\n"
        "from phibuild.cli import main\n"
        "atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))\n"
        "main()\n"
    )
    words = [sys.executable, "-c", program, "list", "backends"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGINT
    assert "llamacpp" in done.stdout
    assert done.stderr == ""
