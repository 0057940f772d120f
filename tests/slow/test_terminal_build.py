"""A real build on a terminal, and in a log."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import CommandLine
from support.faults import QUICK
from support.kinds import some
from support.screens import terminal, too_wide

pytestmark = [
    pytest.mark.cold,
    pytest.mark.skipif(sys.platform == "win32", reason="a pty"),
]
RECIPE = "devices:\n  intel_n100: {llamacpp: [int4, int8]}\n  mac: {mlx: [int4]}\n"
STEPS = 6


@pytest.fixture
def work(phibuild: CommandLine, toolchain_python: Callable[[str], Path]) -> CommandLine:
    for name in ("llamacpp", "mlx", "pytorch"):
        toolchain_python(name)
    (phibuild.folder / "recipes").mkdir()
    (phibuild.folder / "recipes" / "mine.yaml").write_text(RECIPE, "utf-8")
    return phibuild


@pytest.mark.parametrize("width", some([40, 80, 120], [40]))
def test_a_build_on_a_terminal(work: CommandLine, width: int) -> None:
    command = [sys.executable, "-m", "phibuild", "build", "recipe=mine", *QUICK]
    environ = {"PHIBUILD_STORE": str(work.folder / "store")}
    with terminal(command, width, 60, environ, str(work.folder)) as screen:
        running = screen.until(re.compile(rf"[2-9] of {STEPS} steps.*so far", re.S).search, 600)
        assert screen.end(600) == 0
    assert too_wide(running, width) == []
    assert "done source.phi3-tiny-trained" in running
    assert too_wide(screen.text, width) == []
    assert "What to ship" in screen.text
    assert f"of {STEPS} steps" not in screen.text  # what was drawn is gone
    assert "done measure.phi3-tiny-trained.mlx" in screen.text
    said = " ".join(screen.text.split())
    assert "mine: 3 built in" in said
    assert "intel_n100 llamacpp int4" in said


def test_what_ran_says_how_long_the_next_takes(work: CommandLine) -> None:
    """Plans before and after a build; the log of the build; a quiet one."""
    before = json.loads(work("plan", "recipe=mine", "--json", *QUICK).stdout)
    assert before["seconds"] is None
    assert before["cores"] == len(os.sched_getaffinity(0))
    done = work("build", "recipe=mine", *QUICK, NO_COLOR="1")
    assert done.returncode == 0, done.stderr
    assert f"{STEPS} of {STEPS} steps" in done.stderr.splitlines()[-1]
    assert not any(line.count("\x1b") for line in (done.stdout + done.stderr).splitlines())
    assert too_wide(done.stdout.rstrip("\n"), 100) == []
    took = {step["id"]: step["seconds"] for step in work.report("mine")["steps"]}

    # All of it once more, in a store that knows how long that took, and nothing else.
    (work.folder / "fresh").mkdir()
    (work.folder / "store" / "usage").rename(work.folder / "fresh" / "usage")
    store = str(work.folder / "fresh")
    after = json.loads(work("plan", "recipe=mine", "--json", *QUICK, PHIBUILD_STORE=store).stdout)
    assert {step["seconds_by"] for step in after["steps"]} == {"same"}
    for step in after["steps"]:
        assert step["seconds"] == pytest.approx(took[step["id"]], abs=1.5)
    longest = max(step["seconds"] for step in after["steps"])
    assert longest < after["seconds"] <= sum(step["seconds"] for step in after["steps"]) + 0.1
    shown = work("plan", "recipe=mine", *QUICK, PHIBUILD_STORE=store).stdout
    assert f"of {STEPS} steps {STEPS} by runs of the same step" in " ".join(shown.split())

    quiet = work("build", "recipe=mine", "-q", *QUICK, PHIBUILD_STORE=store)
    assert (quiet.returncode, quiet.stderr) == (0, "")
    (line,) = quiet.stdout.splitlines()
    assert re.fullmatch(r"mine: 3 built in [\d.]+ s; report: outputs/mine/[^/]+/report\.html", line)


def test_a_failure_says_why_at_once(work: CommandLine) -> None:
    done = work("build", "recipe=mine", "executor.timeout=0.01", "-q", *QUICK)
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == (
        "source.phi3-tiny-trained: FAILED: timed out after 0.01 s"
    )
    assert len(done.stdout.splitlines()) == 1
