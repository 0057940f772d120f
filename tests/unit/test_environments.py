"""What an environment takes is said before it is installed: by builds and runs, as by plans."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import pytest

from phibuild.commands import run
from phibuild.errors import Problem, ToolchainError
from phibuild.execute.context import Context
from phibuild.execute.display.plain import PlainProgress
from phibuild.execute.execution import install_toolchain
from phibuild.planning.plan import Plan
from phibuild.report.runnable import Runnable
from phibuild.store.store import Store
from phibuild.toolchains.environment import Toolchain
from support.planner import plan

__all__ = ["plan"]  # a fixture
DAMAGED = "damaged: lib/x.py is missing"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing is there, and installing it says what it does and fails."""

    def install(
        tools: Toolchain,
        say: Callable[[str], None] = lambda text: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> float:
        say("installing packages")
        raise ToolchainError(Problem("no network"))

    monkeypatch.setenv("PHIBUILD_TOOLCHAINS", str(tmp_path / "toolchains"))
    monkeypatch.setattr(Toolchain, "install", install)


class Told(PlainProgress):
    """The lines of a build, and the stages besides."""

    def __init__(self) -> None:
        super().__init__()
        self.stages: list[str] = []

    def stage(self, step: str, stage: str, fraction: float | None) -> None:
        self.stages.append(f"{step}: {stage}")


def build(plan: Plan, folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """Return the line and the stage of a build that sets up ort_genai's environment."""
    told = Told()
    context = Context(plan, Store(folder), folder, told, timeout=60, cores=1)
    install_toolchain(context, "ort_genai")
    assert context.toolchain_errors == {"ort_genai": "no network"}
    lines = [line[9:] for line in capsys.readouterr().err.splitlines()]
    assert lines[1].startswith("toolchain.ort_genai: FAILED: no network")
    return lines[0], told.stages[0]


def test_a_build_says_what_it_will_take(
    plan: Callable[..., Plan], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line, stage = build(plan(hashed=False), tmp_path, capsys)
    assert line == "toolchain.ort_genai: set up the environment of ort_genai (1.10 GB)"
    assert stage == "toolchain.ort_genai: ort_genai (1.10 GB): installing packages"


def test_one_that_is_made_again_has_its_reason(
    plan: Callable[..., Plan],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Toolchain, "problem", lambda tools: DAMAGED)
    line, stage = build(plan(hashed=False), tmp_path, capsys)
    assert line == f"toolchain.ort_genai: set up the environment of ort_genai again: {DAMAGED}"
    assert stage == "toolchain.ort_genai: installing packages"


def test_a_run_says_what_it_will_take(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(run, "find_runnable", lambda what, output: Runnable(tmp_path, "ort_genai"))
    words = {"prompt": "Hello", "raw": False, "system": None, "template": None}
    arguments = argparse.Namespace(what="x", output="outputs", **words)
    with pytest.raises(ToolchainError, match="no network"):
        run.run(arguments)
    assert "setting up the environment of ort_genai (1.10 GB)" in capsys.readouterr().err
