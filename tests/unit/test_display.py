"""How a build looks while it runs: live on a terminal, as lines that keep a log alive elsewhere."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import time
from itertools import pairwise

import pytest
from rich.console import Console

from phibuild.execute.context import job_name, step_of
from phibuild.execute.display.board import Board
from phibuild.execute.display.live import LiveProgress, Screen
from phibuild.execute.display.plain import PlainProgress, QuietProgress
from phibuild.execute.forecast import Forecast
from phibuild.execute.local.scheduler import Limits, Task
from phibuild.planning.timing import Expected
from support import slow_build
from support.kinds import some
from support.screens import ESCAPE, HOSTILE, terminal, too_wide

WIDTHS = (20, 30, 40, 60, 69, 70, 80, 100, 200)
STEPS = [
    {"name": "source.phi", "needs": [], "seconds": 0.4, "expected": 0.4},
    {"name": "build.phi.llamacpp", "needs": ["source.phi"], "seconds": 8, "expected": 200},
    {"name": "build.phi.mlx", "needs": ["source.phi"], "seconds": 1, "fails": "killed by SIGKILL"},
    {"name": "measure.phi.llamacpp", "needs": ["build.phi.llamacpp"], "seconds": 1,
     "expected": 60},
]  # fmt: skip
# What has ended, then what is drawn: of 200 s and then 60 s, some have passed.
SCREEN = (
    r"done source\.phi 0\.4 s\n"
    r"FAILED build\.phi\.mlx: Q4_0: killed by\s+SIGKILL\n"
    r"failed build\.phi\.mlx 1\.0 s\n"
    r"2 of 4 steps, 1 failed +━+[^\n]*\s+\d[^\n]* s so far, about 4\s+min\s+\d\d s\s+left\n"
    r"  build\.phi\.llamacpp +\d+(\.\d)? s( of about 3 min 20 s)?\n"
    r"    Q4_0: converting +━+[^\n]* +75 %"
)
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="a pty")


def forecast(*names: str, seconds: float | None = 100.0) -> Forecast:
    tasks = {name: Task(name, frozenset(), 1, 1, lambda alone: False) for name in names}
    known = None if seconds is None else Expected(seconds, "same")
    return Forecast(tasks, dict.fromkeys(names, known), Limits(2, 100), 2)


def drawn(board: Board, width: int, after: float, height: int = 24) -> str:
    """Return what is drawn of a board, so many seconds after its begin."""
    stream = io.StringIO()
    console = Console(file=stream, width=width, height=height, color_system=None, markup=False)
    console.print(Screen(board, lambda: board.began + after))
    return stream.getvalue().rstrip("\n")


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["phi", *HOSTILE])
def test_nothing_is_wider_than_the_terminal(name: str, width: int) -> None:
    steps = [f"build.{name}.llamacpp", f"measure.{name}.llamacpp"]
    board = Board(forecast(*steps))
    for step in steps:
        board.start(step, "starts")
        board.stage(step, f"{name}: converting", 0.45)
    found = drawn(board, width, 12.0)
    assert too_wide(found, width) == []
    assert "12 s" in found
    assert found.count("45 %") == 2
    assert "0 of 2 steps" in found
    assert re.search(r"about\s+1\s+min\s+28\s+s\s+left", found)


def test_a_screen() -> None:
    board = Board(forecast("source.phi", "build.phi.mlx", "measure.phi.mlx"))
    board.over("source.phi")
    board.start("build.phi.mlx", "build q4")
    board.stage("build.phi.mlx", "q4: converting", 0.5)
    whole, step, stage = drawn(board, 80, 12.4).splitlines()
    # One of the two that are left has run for 12 s of 100; they run side by side.
    assert re.fullmatch(r"1 of 3 steps +━+ +12 s so far, about 1 min 40 s left", whole)
    assert re.fullmatch(r"  build\.phi\.mlx +12 s of about 1 min 40 s", step)
    assert re.fullmatch(r" {4}q4: converting +━{15} +50 %", stage)


def test_what_is_not_known_is_left_away() -> None:
    board = Board(forecast("build.phi.mlx", seconds=None))
    board.start("build.phi.mlx", "build q4")
    whole, step, stage = drawn(board, 80, 12.4).splitlines()
    assert whole.split() == ["0", "of", "1", "steps", "12", "s", "so", "far"]
    assert step.split() == ["build.phi.mlx", "12", "s"]
    assert stage.split() == ["build", "q4"]


def test_an_overdue_step_has_nothing_left() -> None:
    board = Board(forecast("build.phi.mlx"))
    board.start("build.phi.mlx", "build q4")
    assert "about 0.0 s left" in drawn(board, 80, 500.0)


def test_many_running_steps_stay_on_the_screen() -> None:
    names = [f"build.{number}" for number in range(300)]
    board = Board(forecast(*names))
    for name in names:
        board.start(name, "runs")
    found = drawn(board, 80, 1.0, height=24).splitlines()
    assert len(found) <= 24
    assert found[-1] == "and 290 more steps"


def test_a_job_counts_for_its_step() -> None:
    name = job_name("build.phi (2).mlx", "17")
    assert step_of(name) == "build.phi (2).mlx"
    assert step_of("build.phi (2).mlx") == "build.phi (2).mlx"
    board = Board(forecast("build.phi (2).mlx"))
    assert board.start(name, "runs").expected == 100.0


# -- lines


def test_lines_of_a_build(capsys: pytest.CaptureFixture[str]) -> None:
    progress = PlainProgress(forecast("build.phi.mlx", "measure.phi.mlx"))
    progress.started("build.phi.mlx", "build q4, q8")
    progress.failed("build.phi.mlx", "q4: crashed (SIGSEGV)\nlast words")
    progress.ended("build.phi.mlx", "q4: crashed (SIGSEGV)\nlast words", 12.3)
    progress.over("build.phi.mlx")
    progress.ended("toolchain.mlx", "no network\nat all", 1.0)
    lines = [line[9:] for line in capsys.readouterr().err.splitlines()]
    assert lines[:3] == [
        "build.phi.mlx: build q4, q8 (about 1 min 40 s)",
        "build.phi.mlx: FAILED: q4: crashed (SIGSEGV)",
        "build.phi.mlx: failed (12 s)",  # its reason has been said
    ]
    assert re.fullmatch(r"1 of 2 steps, 1 failed, 0\.\d s so far, about 1 min 40 s left", lines[3])
    assert lines[4] == "toolchain.mlx: FAILED: no network (1.0 s)"


@pytest.mark.parametrize("name", HOSTILE)
def test_a_line_is_a_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    progress = PlainProgress()
    progress.started(name, name)
    progress.noted(name, name)
    progress.ended(name, None, 1.0)
    found = capsys.readouterr().err
    assert len(found.splitlines()) == 3
    assert found.replace("\n", "").isprintable()


def test_quiet_says_what_fails(capsys: pytest.CaptureFixture[str]) -> None:
    progress = QuietProgress()
    for step, reason in (("a", None), ("b", "out of memory\nmore"), ("c", "no disk")):
        progress.started(step, "build")
        progress.stage(step, "converting", 0.5)
        progress.noted(step, "waits")
        if step == "b":
            progress.failed(step, "out of memory\nmore")
        progress.ended(step, reason, 1.0)
        progress.over(step)
    assert capsys.readouterr().err == "b: FAILED: out of memory\nc: FAILED: no disk\n"


def run(silence: float, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, slow_build.__file__, json.dumps(STEPS[:2]), str(silence), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True)


def test_a_log_is_never_silent_for_long() -> None:
    """A step of 8 s, and at most a second without a line."""
    command = [sys.executable, slow_build.__file__, json.dumps(STEPS[:2]), "1.0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines, at = [], []
        for line in process.stderr:
            lines.append(line)
            at.append(time.monotonic())
    gaps = [after - before for before, after in pairwise(at)]
    assert max(gaps) < 5.0  # the machine may be busy
    alive = [line for line in lines if "running: " in line]
    assert len(alive) >= 4
    said = r"1 of 2 steps, .* so far, about 3 min \d+ s left; running: build\.phi\.llamacpp "
    said += r"\d.* s of about 3 min 20 s \(Q4_0: converting \d+ %\)"
    assert re.fullmatch(r"\d\d:\d\d:\d\d " + said, alive[-1].strip())
    assert not any("\x1b" in line for line in lines)


def test_a_quiet_build_has_no_lines() -> None:
    done = run(0.5, "quiet")
    assert (done.stdout, done.stderr) == ("report\n", "")


# -- a terminal


@POSIX
@pytest.mark.parametrize("width", some([40, 80, 100, 200], [40]))
def test_the_screen_of_a_running_build(width: int) -> None:
    command = [sys.executable, slow_build.__file__, json.dumps(STEPS), "30"]
    with terminal(command, width, 24) as screen:
        seen = screen.until(re.compile(SCREEN, re.DOTALL).fullmatch)
        assert screen.end() == 0
        end = screen.text
    assert too_wide(seen, width) == []
    # What was drawn is gone, what has ended stays.
    assert "of 4 steps" not in end
    assert "done measure.phi.llamacpp 1.0 s" in end
    assert end.splitlines()[-1] == "report"
    assert b"\x1b[?25h" in screen.raw  # the cursor is there again


@POSIX
def test_no_colour_and_a_dumb_terminal() -> None:
    command = [sys.executable, slow_build.__file__, json.dumps(STEPS[:1]), "30"]
    with terminal(command, 80, 24, {"NO_COLOR": "1"}) as screen:
        assert screen.end() == 0
    coloured = re.compile(rb"\x1b\[[0-9;]*(3[0-7]|9[0-7]|38;5;\d+)m")
    assert not coloured.search(bytes(screen.raw))
    assert "done source.phi" in screen.text
    with terminal(command, 80, 24, {"TERM": "dumb"}) as screen:
        assert screen.end() == 0
    assert not ESCAPE.search(screen.raw.decode())
    assert "source.phi: done (0.4 s)" in screen.text


def test_a_live_line_shows_names_as_they_are() -> None:
    stream = io.StringIO()
    progress = LiveProgress(Console(file=stream, width=100, markup=False, color_system=None))
    for name in HOSTILE:
        progress.started(name, name)
        progress.ended(name, f"{name}\nmore", 1.0)
    found = stream.getvalue()
    assert too_wide(found.rstrip("\n"), 100) == []
    assert "[red]not red[/red]" in found
    assert "\\x1b[31mred" in found
