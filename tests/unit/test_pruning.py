"""`phibuild runs`: what there is, what goes, what never goes, and a kill at any moment."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from phibuild.cli import run_command
from phibuild.errors import EXIT_OK, PhibuildError
from phibuild.report import pruning
from phibuild.report.inventory import find_runs
from phibuild.report.pruning import Pruned, plan_prune, prune
from phibuild.report.run_folders import MARK
from phibuild.report.writing import new_run
from phibuild.store.manifest import check_artifact, read_artifact
from phibuild.store.store import Store
from phibuild.system.files import link_tree
from phibuild.system.locks import held
from support.documents import some_facts

DAY = 86400.0
NOW = time.mktime((2030, 1, 31, 12, 0, 0, 0, 0, -1))


class Outputs:
    """Runs of so many days ago, whose artifacts are hard links into a store."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store = folder / "outputs", Store(folder / "store")
        self.store.prepare()

    def publish(self, key: str, size: int) -> None:
        with self.store.workspace() as folder:
            (folder / "model.bin").write_bytes(bytes(size))
            self.store.publish(key, folder, some_facts())

    def write(self, recipe: str, days: float, *keys: str, **totals: object) -> Path:
        """Write a run, the latest of its recipe."""
        stamp = time.strftime("%Y-%m-%d_%H-%M-%S", time.localtime(NOW - days * DAY))
        run = self.folder / recipe / stamp
        for key in keys:
            link_tree(self.store.root / "artifacts" / key, run / "artifacts" / "pc" / key)
        run.mkdir(parents=True, exist_ok=True)
        counts = {"built": len(keys), "cached": 0, "skipped": 1, "failed": 0, "gates_failed": 0,
                  "size_bytes": 5, "steps": 1, "seconds": 1.0, "interrupted": False}  # fmt: skip
        report = {"command": f"phibuild recipe={recipe}", "totals": {**counts, **totals}}
        (run / "report.json").write_text(json.dumps(report), encoding="utf-8")
        latest = run.parent / "latest"
        latest.unlink(missing_ok=True)
        latest.symlink_to(run.name)
        return run

    def names(self) -> list[str]:
        """Return recipe and days of all runs that have a report, newest first."""
        return [name_of(path.parent) for path in self.folder.glob("*/*[!t]/report.json")]


def name_of(run: Path) -> str:
    moment = time.mktime(time.strptime(run.name, "%Y-%m-%d_%H-%M-%S"))
    return f"{run.parent.name}{(NOW - moment) / DAY:.0f}"


def went(pruned: Pruned) -> list[str]:
    return [name_of(run.folder) for run in pruned.removed]


@pytest.fixture
def outputs(tmp_path: Path) -> Outputs:
    made = Outputs(tmp_path)
    for key, size in (("a", 100_000), ("b", 20_000)):
        made.publish(key, size)
    for days in (90, 60, 31, 29, 2):
        made.write("x", days, "a", "b")
    made.write("y", 45, "a")
    made.write("y", 40, "b")
    return made


def sweep(
    outputs: Outputs,
    recipe: str | None = None,
    *,
    older: float | None = None,
    keep: int | None = None,
) -> list[str]:
    """Remove, as is planned; return what went."""
    older_than = None if older is None else older * DAY
    planned = plan_prune(outputs.folder, recipe, now=NOW, older_than=older_than, keep=keep)
    before = set(outputs.names())
    pruned = prune(outputs.folder, recipe, now=NOW, older_than=older_than, keep=keep)
    assert (planned.removed, planned.freed_bytes) == (pruned.removed, pruned.freed_bytes)
    assert before - set(outputs.names()) == set(went(pruned))
    return went(pruned)


def test_what_is_old_goes_but_never_the_latest(outputs: Outputs) -> None:
    assert sweep(outputs, older=30) == ["x90", "x60", "y45", "x31"]
    assert sweep(outputs, older=30) == []
    assert sweep(outputs, older=0) == ["x29"]
    assert sorted(outputs.names()) == ["x2", "y40"]


def test_so_many_of_each_recipe_are_kept(outputs: Outputs) -> None:
    assert sweep(outputs, keep=3) == ["x90", "x60"]
    assert sweep(outputs, "y", keep=1) == ["y45"]
    assert sweep(outputs, keep=2, older=30) == ["x31"]


def test_a_latest_that_is_not_the_newest_stays(outputs: Outputs) -> None:
    latest = outputs.folder / "x" / "latest"
    oldest = min(path.name for path in latest.parent.iterdir() if path.name != "latest")
    latest.unlink()
    latest.symlink_to(oldest)
    assert sweep(outputs, "x", older=0) == ["x60", "x31", "x29", "x2"]
    # Without a link the newest is in its place.
    outputs.write("z", 9)
    outputs.write("z", 8)
    (outputs.folder / "z" / "latest").unlink()
    assert sweep(outputs, "z", older=0) == ["z9"]


def test_what_was_confirmed_lately_stays(outputs: Outputs) -> None:
    old = next(r.folder for r in find_runs(outputs.folder, "x") if name_of(r.folder) == "x60")
    note = {
        "phibuild_version": "1", "time": NOW - DAY, "command": "phibuild", "confirmations": 3,
        "host": {"system": "", "python": "", "cores": 1, "memory_bytes": 1},
    }  # fmt: skip
    (old / "confirmed.json").write_text(json.dumps(note), encoding="utf-8")
    assert name_of(old) not in sweep(outputs, older=30)
    found = next(run for run in find_runs(outputs.folder, "x") if run.folder == old)
    assert (found.confirmed, found.confirmations) == (NOW - DAY, 3)


def test_bytes_are_those_whose_last_link_goes(outputs: Outputs, tmp_path: Path) -> None:
    """What the store holds too is not freed; what only runs share is freed with the last."""
    sizes = {run.folder: run.alone_bytes for run in find_runs(outputs.folder)}
    for run, size in sizes.items():
        assert size == (run / "report.json").stat().st_size
    for path in (outputs.store.root / "artifacts" / "a").iterdir():
        path.unlink()
    pruned = prune(outputs.folder, "x", now=NOW, older_than=0, keep=None)
    assert pruned.freed_bytes < 100_000  # the latest and y have links
    linked = (outputs.folder / "y").rglob("a/*")
    freed = sum(path.stat().st_size for path in linked)
    before = sum_of_disk(tmp_path)
    (outputs.folder / "x" / "latest").unlink()
    last = outputs.write("x", 1)
    pruned = prune(outputs.folder, None, now=NOW, older_than=0, keep=None)
    assert went(pruned) == ["y45", "x2"]
    assert [run.alone_bytes > 100_000 for run in pruned.removed] == [False, True]
    assert pruned.freed_bytes > freed
    added = (last / "report.json").stat().st_size
    assert before - sum_of_disk(tmp_path) + added == pruned.freed_bytes


def sum_of_disk(folder: Path) -> int:
    """Return the bytes of all files, each once whatever its links."""
    found = {(s.st_dev, s.st_ino): s.st_size
             for path in folder.rglob("*") if path.is_file() for s in [path.lstat()]}  # fmt: skip
    return sum(found.values())


def test_what_is_being_written_or_looked_after_stays(outputs: Outputs) -> None:
    with new_run(outputs.folder, "x") as running:
        assert prune(outputs.folder, "x", now=NOW, older_than=None, keep=9).removed == ()
        status = {run.folder: run.status for run in find_runs(outputs.folder)}
        assert status[running] == "running"
        assert (running / "logs").is_dir()
    oldest = find_runs(outputs.folder, "x")[-2].folder
    with held(oldest / MARK):
        pruned = prune(outputs.folder, "x", now=NOW, older_than=0, keep=None)
        assert [run.folder for run in pruned.busy] == [oldest]
        assert oldest in [run.folder for run in pruned.left]
    assert (oldest / "report.json").is_file()


def test_it_becomes_the_latest_in_the_last_moment(
    outputs: Outputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose = pruning.choose

    def late(*words: object, **more: object) -> object:
        chosen = choose(*words, **more)  # type: ignore[arg-type]
        latest = outputs.folder / "y" / "latest"
        latest.unlink()
        latest.symlink_to(chosen[0].folder.name)
        return chosen

    monkeypatch.setattr(pruning, "choose", late)
    pruned = prune(outputs.folder, "y", now=NOW, older_than=0, keep=None)
    assert pruned.removed == ()
    assert len(list((outputs.folder / "y").iterdir())) == 3
    assert not list(outputs.folder.rglob(MARK))


def test_what_killed_builds_left_goes_too(outputs: Outputs) -> None:
    left = outputs.folder / "x" / "2029-01-01_00-00-00"
    (left / "artifacts").mkdir(parents=True)
    (left / MARK).touch()
    assert find_runs(outputs.folder, "x")[-1].status == "killed"
    pruned = prune(outputs.folder, "x", now=NOW, older_than=1000 * DAY, keep=None)
    assert [run.folder for run in pruned.removed] == [left]
    assert not left.exists()


def test_what_is_no_run_stays(outputs: Outputs) -> None:
    for name in ("notes", "2029-01-02_00-00-00"):
        (outputs.folder / "x" / name).mkdir()
        (outputs.folder / "x" / name / "text.txt").touch()
    (outputs.folder / "file").touch()
    prune(outputs.folder, None, now=NOW, older_than=0, keep=1)
    assert (outputs.folder / "x" / "notes" / "text.txt").exists()
    assert (outputs.folder / "x" / "2029-01-02_00-00-00" / "text.txt").exists()


# -- killed


@contextmanager
def killing(after: int) -> Iterator[None]:
    """Kill this process before it removes its next file or folder, once it has removed `after`."""
    left = [after]

    def count(remove: Callable[..., None]) -> Callable[..., None]:
        def counted(*words: object, **more: object) -> None:
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            remove(*words, **more)

        return counted

    for name in ("unlink", "rmdir"):
        setattr(os, name, count(getattr(os, name)))
    yield


def test_killed_at_any_moment_nothing_is_half(tmp_path: Path) -> None:
    for after in range(200):
        outputs = Outputs(tmp_path / str(after))
        outputs.publish("a", 100)
        for days in (9, 8, 7):
            outputs.write("x", days, "a")
        child = os.fork()
        if not child:
            with killing(after):
                prune(outputs.folder, None, now=NOW, older_than=0, keep=None)
                os._exit(0)
        _, status = os.waitpid(child, 0)
        runs = [path.parent for path in outputs.folder.glob("x/*/report.json")]
        for run in runs:
            artifact = read_artifact(run / "artifacts" / "pc" / "a")
            assert artifact is not None, (after, run)
            assert check_artifact(artifact) == []
        assert name_of((outputs.folder / "x" / "latest").resolve()) == "x7"
        listed = {run.folder.name: run.status for run in find_runs(outputs.folder)}
        assert {listed[run.name] for run in runs if run.name != "latest"} == {"built"}
        # The next build, or the next sweep, takes away what is left.
        if after % 2:
            with new_run(outputs.folder, "x") as new:
                pass
            names = {path.name for path in new.parent.iterdir()} - {new.name, "latest"}
            assert names == {run.name for run in runs} - {"latest"}, after
        assert prune(outputs.folder, None, now=NOW, older_than=0, keep=None).left != ()
        assert outputs.names() == ["x7"]
        if not os.waitstatus_to_exitcode(status):
            assert after > 15  # it was killed at each of its removals before
            return
    pytest.fail("it never came to an end")


# -- the command line


@pytest.fixture
def say(
    outputs: Outputs, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    monkeypatch.chdir(outputs.folder.parent)
    monkeypatch.setattr(time, "time", lambda: NOW)

    def run(*words: str) -> str:
        assert run_command(["runs", *words]) == EXIT_OK
        return capsys.readouterr().out

    return run


def test_the_list(outputs: Outputs, say: Callable[..., str]) -> None:
    outputs.write("w", 5, failed=1)
    outputs.write("w", 4, gates_failed=1)
    outputs.write("w", 3, interrupted=True)
    (outputs.write("w", 2) / "report.json").write_text("{", encoding="utf-8")
    found = json.loads(say("list", "w", "--json"))
    assert [row["status"] for row in found] == ["damaged", "interrupted", "gate failed", "failed"]
    assert [row["cells"] for row in found] == [None, 1, 1, 2]
    assert [row["latest"] for row in found] == [True, False, False, False]
    lines = say("list").splitlines()
    assert lines[0].split()[:4] == ["recipe", "run", "cells", "status"]
    assert len(lines) == 2 + 4 + 7
    line = next(line for line in lines if "x " in line and "latest" in line)
    size = str((outputs.folder / "x" / "latest" / "report.json").stat().st_size)
    assert line.split()[2:] == ["3", "built,", "latest", "-", size, "B", "phibuild", "recipe=x"]


def test_prune_says_what_it_does(outputs: Outputs, say: Callable[..., str]) -> None:
    found = json.loads(say("prune", "--dry-run", "--json"))
    assert (len(found["removed"]), found["left"], found["dry_run"]) == (4, 3, True)
    assert len(outputs.names()) == 7
    said = say("prune", "--keep", "4", "--dry-run")
    size = (outputs.folder / "x" / "latest" / "report.json").stat().st_size
    assert f"would remove 1 runs, {size} B freed on disk; 6 left" in said
    said = say("prune")
    assert f"removed 4 runs, {found['freed_bytes']} B freed on disk; 3 left" in said
    assert found["freed_bytes"] == pytest.approx(4 * size, abs=8)
    assert len(outputs.names()) == 3
    assert "removed 0 runs" in say("prune")


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("list", "xx"), "no runs of a recipe 'xx'.*did you mean 'x'"),
        (("prune", "xx"), "no runs of a recipe 'xx'"),
        (("prune", "--older-than", "soon"), "'soon' is not a time"),
        (("prune", "--keep", "0"), "must be 1 or more"),
        (("list", "--keep", "2"), "list takes no --keep"),
        (("list", "--older-than", "2d"), "list takes no --older-than"),
        (("remove",), "invalid choice: 'remove'"),
    ],
)
def test_wrong_words(say: Callable[..., str], words: tuple[str, ...], what: str) -> None:
    with pytest.raises(PhibuildError, match="(?s)" + what):
        say(*words)


def test_there_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["runs", "list", "--output", str(tmp_path / "none")]) == EXIT_OK
    assert capsys.readouterr().out == f"no runs in {tmp_path / 'none'}\n"
    assert run_command(["runs", "prune", "--output", str(tmp_path / "none")]) == EXIT_OK
