"""A build that makes nothing new writes no run: what counts as new, and what the note says."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from phibuild.cli import run_command
from phibuild.errors import EXIT_CELL_FAILED, EXIT_OK
from phibuild.execute.context import Result
from phibuild.execute.local.executor import Execution
from phibuild.execute.local.scheduler import History
from phibuild.report.confirming import confirm_latest
from phibuild.report.data import make_report
from phibuild.report.documents import Report
from phibuild.report.run_folders import last_time
from phibuild.report.runs import find_run
from phibuild.report.writing import new_run, write_run
from phibuild.store.uses import read_uses
from support.documents import some_measure
from support.planner import RECIPE, Planner, plan

__all__ = ["plan"]


class Builds:
    """Builds of a recipe whose artifacts are small files that are in the store already."""

    def __init__(self, plan: Planner) -> None:
        self.plan, self.outputs = plan, plan.folder / "outputs"
        plan.build(plan())
        self.found = plan()
        plan.judge(self.found)

    def report(self, change: Callable[[dict[str, Result]], None] = lambda results: None) -> Report:
        """Return what a build would report now, but for a change of its results."""
        plan = self.found
        results = {
            a.key: Result(a, "cached", measure=self.plan.store.measure(a.measure_key or ""))
            for a in plan.artifacts
        }
        change(results)
        execution = Execution(
            results, History({}, {}), {}, cores=2, memory_bytes=8 << 30, complete=True
        )
        return make_report(
            plan, execution, self.plan.store, recipe="mine", configuration="recipe: mine\n",
            command="phibuild recipe=mine", seconds=12.3,
        )  # fmt: skip

    def write(self, report: Report) -> Path:
        """Write a run."""
        results = {a.key: Result(a, "cached") for a in self.found.artifacts}
        with new_run(self.outputs, "mine") as folder:
            write_run(folder, self.found, results, self.plan.store, report)
        return folder

    def confirm(self, report: Report, *, thorough: bool = False) -> Path | None:
        return confirm_latest(self.outputs / "mine", report, self.plan.store, thorough=thorough)


@pytest.fixture
def builds(plan: Planner) -> Builds:
    return Builds(plan)


def as_built(report: Report) -> Report:
    """Return the report of the build that made what another found."""
    cells = [c.model_copy(update={"status": "built"}) for c in report.cells]
    totals = report.totals.model_copy(update={"built": len(cells), "cached": 0, "steps": 9})
    return report.model_copy(update={"cells": cells, "totals": totals, "command": "phibuild first"})


def files(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_nothing_new_is_a_note_in_the_latest_run(builds: Builds) -> None:
    report = builds.report()
    run = builds.write(as_built(report))
    before = files(run)
    assert builds.confirm(report) == run
    note = json.loads((run / "confirmed.json").read_text("utf-8"))
    assert (note["confirmations"], note["command"]) == (1, "phibuild recipe=mine")
    assert note["host"]["cores"] == os.cpu_count()
    assert last_time(run) == pytest.approx(note["time"], abs=2)
    assert builds.confirm(report) == run
    assert json.loads((run / "confirmed.json").read_text("utf-8"))["confirmations"] == 2
    after = files(run)
    after.pop("confirmed.json")
    assert after == before  # and no mark is left


def _fail(results: dict[str, Result]) -> None:
    result = next(iter(results.values()))
    result.status, result.reason, result.measure = "failed", "no memory", None


def test_a_failure_that_was_there_before_is_nothing_new(builds: Builds) -> None:
    failed = builds.report(_fail)
    run = builds.write(failed)
    assert builds.confirm(failed) == run

    def otherwise(results: dict[str, Result]) -> None:
        _fail(results)
        next(iter(results.values())).reason = "killed by SIGKILL"

    assert builds.confirm(builds.report(otherwise)) is None
    assert builds.confirm(builds.report()) is None  # it is there now


def _build(results: dict[str, Result]) -> None:
    next(iter(results.values())).status = "built"


def _judge(results: dict[str, Result]) -> None:
    next(iter(results.values())).measure = some_measure(0.2)


def test_other_results_are_new(builds: Builds) -> None:
    run = builds.write(builds.report())
    for change in (_fail, _build, _judge):
        assert builds.confirm(builds.report(change)) is None, change
    assert not (run / "confirmed.json").exists()


def test_another_source_gate_or_option_is_new(builds: Builds) -> None:
    report = builds.report()
    builds.write(report)
    first = report.cells[0]
    (model,) = report.models
    others = model.model_copy(update={"source_digest": "0" * 64})
    assert builds.confirm(report.model_copy(update={"models": [others]})) is None
    changes: tuple[dict[str, object], ...] = (
        {"options": {"type": "Q5_K_M"}}, {"artifact_digest": "0"}, {"fits_budget": False},
        {"notes": ["something else"]}, {"gates": ["a gate"]}, {"device_budget_bytes": 1},
    )  # fmt: skip
    for change in changes:
        cells = [first.model_copy(update=change), *report.cells[1:]]
        assert builds.confirm(report.model_copy(update={"cells": cells})) is None, change
    assert builds.confirm(report.model_copy(update={"cells": report.cells[1:]})) is None
    of_the_run: tuple[dict[str, object], ...] = (
        {"configuration": "recipe: mine\ngates: {kl: 1}\n"}, {"configuration_sha256": "0"},
        {"phibuild_version": "0.2.0"}, {"sensitivities": None},
    )  # fmt: skip
    for change in of_the_run:
        assert builds.confirm(report.model_copy(update=change)) is None, change
    assert builds.confirm(report) is not None


def test_an_interrupted_run_is_never_confirmed(builds: Builds) -> None:
    report = builds.report()
    cut = report.model_copy(
        update={"totals": report.totals.model_copy(update={"interrupted": True})}
    )
    builds.write(cut)
    assert builds.confirm(cut) is None
    assert builds.confirm(report) is None


def _weights(run: Path) -> Path:
    return next(run.rglob("model.bin"))


def _cut(run: Path) -> None:
    _copy(run).write_bytes(b"")


def _other_content(run: Path) -> None:
    path = _copy(run)
    path.write_bytes(path.read_bytes()[::-1])


def _copy(run: Path) -> Path:
    """Have a file of a run be its own, not the store's, and give it."""
    path = _weights(run)
    status, data = path.stat(), path.read_bytes()
    path.unlink()
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    return path


DAMAGES: tuple[Callable[[Path], object], ...] = (
    lambda run: _weights(run).unlink(),
    lambda run: shutil.rmtree(_weights(run).parent),
    _cut,
    _other_content,
    lambda run: (run / "report.json").write_text("{", "utf-8"),
    lambda run: (run / "report.json").unlink(),
    lambda run: (run / "report.md").unlink(),
    lambda run: (run / "report.html").unlink(),
    lambda run: (run.parent / "latest").unlink(),
    shutil.rmtree,
)


def test_a_run_that_is_not_whole_is_written_anew(builds: Builds) -> None:
    report = builds.report()
    for number, damage in enumerate(DAMAGES):
        run = builds.write(report)
        assert builds.confirm(report) == run
        damage(run)
        assert builds.confirm(report) is None, number


def test_copies_are_hashed_where_it_is_asked_for(builds: Builds) -> None:
    report = builds.report()
    run = builds.write(report)
    path = _copy(run)
    assert builds.confirm(report, thorough=True) == run
    status = path.stat()
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert builds.confirm(report) == run  # the cheap check cannot see it
    assert builds.confirm(report, thorough=True) is None


# -- the command line


@pytest.fixture
def command(
    builds: Builds, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    monkeypatch.setenv("PHIBUILD_STORE", str(builds.plan.store.root))

    def run(*words: str) -> tuple[int, str]:
        code = run_command(["build", "recipe=mine", *words])
        return code, capsys.readouterr().out

    return run


def test_the_same_build_again_makes_no_folder(
    builds: Builds, command: Callable[..., tuple[int, str]]
) -> None:
    base, store = builds.outputs / "mine", builds.plan.store
    code, said = command()
    assert code == EXIT_OK, said
    (run,) = (path for path in base.iterdir() if path.name != "latest")
    assert "nothing new" not in said
    for number in (1, 2):
        code, said = command()
        assert code == EXIT_OK
        assert "5 cached, nothing to do" in said
        assert f"nothing new: the run of {run.name} holds" in said
        assert f"report: outputs/mine/{run.name}/report.html" in said
        assert sorted(path.name for path in base.iterdir()) == [run.name, "latest"]
        note = json.loads((run / "confirmed.json").read_text("utf-8"))
        assert note["confirmations"] == number
        # The store knows of one run, whose use is of now.
        (use,) = read_uses(store)
        assert (use.folder, use.gone) == (run, False)
        assert use.time == pytest.approx(note["time"], abs=5)
    report = json.loads(command("--json")[1])
    assert [cell["status"] for cell in report["cells"]] == ["cached"] * 5
    assert len(list(base.iterdir())) == 2


def test_other_words_make_a_new_run(
    builds: Builds, command: Callable[..., tuple[int, str]]
) -> None:
    runs = 0
    for words in (
        (), ("gates.size=1MB",), ("gates.size=2MB",), (), ("--only", "*.int8"),
    ):  # fmt: skip
        runs += 1
        for _ in range(2):
            command("evaluation=none", *words)
            assert len(list((builds.outputs / "mine").iterdir())) == runs + 1, words
    builds.plan.recipe(RECIPE.replace(", openvino: [int4]", ""))
    command("evaluation=none")
    assert len(list((builds.outputs / "mine").iterdir())) == runs + 2


def test_the_confirmed_run_is_the_newest(
    builds: Builds, command: Callable[..., tuple[int, str]]
) -> None:
    command()
    (builds.plan.folder / "recipes" / "other.yaml").write_text(RECIPE, encoding="utf-8")
    run_command(["build", "recipe=other"])
    old = find_run(builds.outputs, "mine").resolve()
    os.utime(old / "report.json", (1e9, 1e9))
    assert find_run(builds.outputs, None).parent.name == "other"
    command()
    assert find_run(builds.outputs, None).parent.name == "mine"
    assert find_run(builds.outputs, None).resolve() == old


def test_a_damaged_artifact_of_the_store_is_built_again_into_a_new_run(
    builds: Builds, command: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the build fails, for want of a toolchain: that too is new."""
    command()
    weights = next((builds.plan.store.root / "artifacts").rglob("model.bin"))
    weights.unlink()
    monkeypatch.setenv("PHIBUILD_TOOLCHAINS", "/dev/null/none")
    code, _ = command()
    assert code == EXIT_CELL_FAILED
    assert len(list((builds.outputs / "mine").iterdir())) == 3
