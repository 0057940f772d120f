"""A run's folder: files of the store by hard links, and what cannot be linked once a run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from phibuild.execute.context import Result
from phibuild.execute.local.executor import Execution
from phibuild.execute.local.scheduler import History
from phibuild.planning.plan import Plan
from phibuild.report.data import make_report
from phibuild.report.inventory import find_runs
from phibuild.report.pruning import prune
from phibuild.report.writing import new_run, write_run
from phibuild.store.manifest import check_artifact, read_artifact
from support.planner import Planner, plan

__all__ = ["plan"]

DATA = "model.onnx.data"
"""What ONNX Runtime refuses where it has several hard links."""


@pytest.fixture
def written(plan: Planner, monkeypatch: pytest.MonkeyPatch) -> Callable[[], tuple[Plan, Path]]:
    """Return what writes a run of three devices, two formats and one artifact of each."""
    monkeypatch.setattr("phibuild.system.files._cloned", lambda source, target: False)
    plan.recipe(
        "devices:\n"
        "  intel_n100: {ort_genai: [int4], llamacpp: [int4]}\n"
        "  ai_pc_intel: {ort_genai: [int4], llamacpp: [int4]}\n"
        "  pixel_9: {ort_genai: [int4]}\n"
    )
    plan.build(plan(), DATA)

    def write() -> tuple[Plan, Path]:
        found = plan()
        results = {a.key: Result(a, "cached") for a in found.artifacts}
        execution = Execution(
            results, History({}, {}), {}, cores=2, memory_bytes=8 << 30, complete=True
        )
        report = make_report(
            found, execution, plan.store, recipe="mine", configuration="recipe: mine\n",
            command="phibuild", seconds=1.0,
        )  # fmt: skip
        with new_run(plan.folder / "outputs", "mine") as folder:
            write_run(folder, found, results, plan.store, report)
        return found, folder

    return write


def cell_folder(run: Path, device: str, backend: str = "ort_genai") -> Path:
    (found,) = run.glob(f"artifacts/{device}/*-{backend}-int4*")
    return found


DEVICES = ("intel_n100", "ai_pc_intel", "pixel_9")


def test_what_cannot_be_linked_is_there_once(written: Callable[[], tuple[Plan, Path]]) -> None:
    _, run = written()
    folders = [cell_folder(run, device) for device in DEVICES]
    assert len({os.stat(folder / DATA).st_ino for folder in folders}) == 1
    assert os.stat(folders[0] / DATA).st_nlink == 1
    assert [folder.is_symlink() for folder in folders].count(False) == 1
    for folder in folders:
        artifact = read_artifact(folder)
        assert artifact is not None
        assert not check_artifact(artifact)
    # What may have several links has them, in every cell.
    llama = [cell_folder(run, device, "llamacpp") for device in DEVICES[:2]]
    assert not any(folder.is_symlink() for folder in llama)
    assert os.stat(llama[0] / DATA).st_nlink == 3


def test_it_holds_where_the_run_is_moved(
    written: Callable[[], tuple[Plan, Path]], tmp_path: Path
) -> None:
    _, run = written()
    (tmp_path / "elsewhere").mkdir()
    moved = Path(shutil.move(run, tmp_path / "elsewhere" / "ours"))
    assert len({(cell_folder(moved, device) / DATA).read_bytes() for device in DEVICES}) == 1


def test_without_symbolic_links_every_cell_has_a_copy(
    written: Callable[[], tuple[Plan, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: Path, target: object, target_is_directory: bool = False) -> None:
        if target_is_directory:
            raise OSError("a privilege is not held")
        os.symlink(str(target), self)

    monkeypatch.setattr(Path, "symlink_to", refused)
    _, run = written()
    folders = [cell_folder(run, device) for device in DEVICES]
    assert not any(folder.is_symlink() for folder in folders)
    assert len({os.stat(folder / DATA).st_ino for folder in folders}) == 3


def test_a_pruned_run_takes_nothing_else_with_it(
    written: Callable[[], tuple[Plan, Path]], plan: Planner
) -> None:
    _, first = written()
    _, second = written()
    outputs = plan.folder / "outputs"
    size = os.stat(cell_folder(first, "pixel_9") / DATA).st_size
    (old,) = (one for one in find_runs(outputs) if one.folder.name == first.name)
    pruned = prune(outputs, None, now=0.0, older_than=None, keep=1)
    assert [run.folder for run in pruned.removed] == [old.folder]
    assert pruned.removed[0].alone_bytes >= size
    assert not first.exists()
    for device in DEVICES:
        assert (cell_folder(second, device) / DATA).stat().st_size == size
