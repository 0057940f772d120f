"""Ctrl-C, twice too, and SIGTERM: phibuild stops, says what was done, and goes on the next time."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest

from phibuild.store.manifest import read_artifact
from support.faults import QUICK, Running, Site, Tally, digests, files_are_written, wait_until
from support.faulty import mend, misbehave, misbehaved
from support.kinds import some
from support.quickstart import QUICKSTART

BUILD = ("build", "recipe=quickstart", *QUICK)
UNDONE = ("mlx", "llamacpp")


@pytest.fixture
def site(tmp_path: Path, undisturbed: Site) -> Site:
    """Return a site that lacks all artifacts of two backends."""
    site = Site(tmp_path, tmp_path / "store")
    shutil.copytree(undisturbed.store, site.store, copy_function=os.link)
    for folder in site.artifacts():
        artifact = read_artifact(folder)
        assert artifact is not None
        if artifact.manifest.backend in UNDONE:
            shutil.rmtree(folder)
    site.check_store()
    assert len(site.artifacts()) == 4 * (len(QUICKSTART) - len(UNDONE))
    return site


Moment = Callable[[Site], Callable[[], object]]
MOMENTS: dict[str, Moment] = {
    "while a worker starts": lambda site: site.workers,
    "while files are written": lambda site: lambda: files_are_written(site),
    "while it is judged": lambda site: lambda: "judge" in _said(site),
}
SIGNALS = {"SIGINT": (signal.SIGINT,), "SIGINT twice": (signal.SIGINT, signal.SIGINT),
           "SIGTERM": (signal.SIGTERM,)}  # fmt: skip


def _said(site: Site) -> str:
    return (site.folder / f"said-{site.started}.txt").read_text("utf-8", "replace")


@pytest.mark.parametrize(
    ("name", "moment"),
    some(
        product(SIGNALS, MOMENTS),
        [
            ("SIGINT", "while a worker starts"),
            ("SIGINT", "while files are written"),
            ("SIGTERM", "while it is judged"),
        ],
    ),
)
def test_a_signal(name: str, moment: str, site: Site, undisturbed: Site, tally: Tally) -> None:
    with site.start(*BUILD) as running:
        assert wait_until(MOMENTS[moment](site), running), running.output
        time.sleep(0.1)
        began = time.monotonic()
        send(running, SIGNALS[name])
        code = running.wait(60)
        assert time.monotonic() - began < 20
        tally.add(name, moment)
        # A second Ctrl-C may meet a Python that has done its work and is about to end.
        assert code == 130 or (name == "SIGINT twice" and code == -signal.SIGINT), running.output
        site.check()
    assert "Traceback" not in running.output
    # The second one, where it comes before the report is written, ends phibuild without it.
    if name != "SIGINT twice" or list(site.outputs.glob("outputs/*/latest")):
        report = site.report()
        assert report["totals"]["interrupted"] is True
        failed = {cell["backend"] for cell in report["cells"] if cell["status"] == "failed"}
        assert failed <= {*UNDONE}
    resumes(site, undisturbed)


def send(running: Running, signals: tuple[signal.Signals, ...]) -> None:
    """Send signals one after the other, half a second apart, as long as it runs."""
    for number, sig in enumerate(signals):
        if number:
            time.sleep(0.5)
            if running.process.poll() is not None:
                return
        os.kill(running.process.pid, sig)


def resumes(site: Site, undisturbed: Site) -> None:
    again = site.run(*BUILD)
    assert again.wait() == 0, again.output
    site.check()
    site.check_swept()
    site.check_all_built(digests(undisturbed.report()))


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_phibuild_starts(sig: signal.Signals, site: Site, tally: Tally) -> None:
    """Nothing has been begun: there is no report, and no traceback either."""
    for delay in (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4):
        with site.start(*BUILD) as running:
            time.sleep(delay)
            assert running.process.poll() is None
            os.kill(running.process.pid, sig)
            code = running.wait(60)
            tally.add(sig.name, "while phibuild starts")
            # Before Python has a handler, the system ends the process; Python, too, ends itself by
            # SIGINT if it was at certain places (a shell shows 130 for that). While it starts it
            # has words of its own for it: nothing of phibuild has run then.
            assert "phibuild" not in _frames(running.output), f"after {delay} s: {running.output}"
            if "Traceback" not in running.output:
                assert code in (130, -signal.SIGINT, -sig), running.output
            site.check()


def test_a_second_ctrl_c_does_not_wait(site: Site, undisturbed: Site, tally: Tally) -> None:
    """The worker ignores SIGTERM: the first would give it some seconds."""
    misbehave(site, "mlx", "hangs", times=1)
    with site.start(*BUILD) as running:
        assert wait_until(lambda: misbehaved(site), running), running.output
        time.sleep(0.3)
        os.kill(running.process.pid, signal.SIGINT)
        time.sleep(0.5)
        assert running.process.poll() is None
        os.kill(running.process.pid, signal.SIGINT)
        began = time.monotonic()
        code = running.wait(60)
        took = time.monotonic() - began
        tally.add("SIGINT twice", "while a worker ignores SIGTERM")
        assert code in (130, -signal.SIGINT), running.output
        assert took < 3
        site.check()
    assert "Traceback" not in running.output
    mend(site)
    resumes(site, undisturbed)


def _frames(output: str) -> str:
    """Return the lines of a traceback that say where it was."""
    return "\n".join(line for line in output.splitlines() if line.startswith('  File "'))


@pytest.mark.parametrize("interrupted", [False, True])
def test_whoever_reads_the_output_goes(
    interrupted: bool, site: Site, undisturbed: Site, tally: Tally
) -> None:
    """Of `phibuild build 2>&1 | tee log`, Ctrl-C ends tee, too; head ends when it has enough."""
    words = ("build", "-m", "recipe=quickstart", "backend=mlx,llamacpp", "evaluation=none")
    with subprocess.Popen(
        [sys.executable, "-m", "phibuild", *words],
        cwd=site.folder,
        env=site.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        assert process.stdout is not None
        assert b": build" in process.stdout.readline()
        process.stdout.close()
        if interrupted:
            process.send_signal(signal.SIGINT)
    tally.add("the output's reader goes", "with Ctrl-C" if interrupted else "at the first line")
    assert process.returncode == (130 if interrupted else 0)
    site.check()
    report, expected = site.report(), digests(undisturbed.report(), "mlx", "llamacpp")
    assert report["totals"]["interrupted"] == interrupted
    if not interrupted:
        site.check_all_built(expected)
