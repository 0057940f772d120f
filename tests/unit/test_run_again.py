"""Steps that are run again: whatever a runner that died has left, the next meets nothing of it but
what it is to go on from, and nothing of it is published."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from phibuild.execute import context as contexts
from phibuild.execute.context import Original
from phibuild.execute.execution import run_step
from phibuild.execute.runner import process
from phibuild.execute.slurm import remote
from phibuild.planning.plan import Plan
from phibuild.planning.steps import OriginalStep, Step
from phibuild.store.manifest import MANIFEST
from phibuild.store.store import Store
from phibuild.worker.codes import CodeWriter, Rows, layer_file, sweep_parts
from phibuild.worker.grids import Grid
from support.contexts import make_context
from support.planner import Planner

RECIPE = """
devices:
  raspberry_pi_5:
    llamacpp:
      int4:
      - {method: gptq, text: t.txt, type: Q4_0}
      - {imatrix: t.txt, type: Q4_K_M}
      - {target_kl: 0.1, text: t.txt}
      int8: {}
"""
# Notes what it finds in its folders, litters all of them, and dies, so many times.
RUNNER = """
import json, os, signal, sys
from pathlib import Path

here = Path(__file__).parent
request = json.load(sys.stdin)
items = request.get("items", [request])
view = Path(request["source"])
folders = [Path(one["output"]) for one in items]

def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))

with open(here / "seen.jsonl", "a") as file:
    links = {path.name: os.path.realpath(path) for path in view.iterdir()}
    states = names(Path(request["states"])) if "states" in request else []
    found = {"outputs": list(map(names, folders)), "view": links, "states": states}
    print(json.dumps(found), file=file)
deaths = json.loads((here / "deaths.json").read_text())
(here / "deaths.json").write_text(json.dumps(deaths[1:]))
for folder in folders:
    (folder / "done").write_text("a part")
    if deaths:
        ours = folder / "tmp" / "ours"
        ours.mkdir(parents=True)
        for path in view.iterdir():
            (ours / path.name).symlink_to(path.resolve())
        (ours / "gone").symlink_to(folder / "theirs")
        (folder / "weights").mkdir()
if "states" in request:
    (Path(request["states"]) / "states").write_text("some")
if deaths:
    (view / "tokenizer.json").unlink()
    (view / "model.safetensors").unlink()
    (view / "model.safetensors").symlink_to(folders[0] / "weights")
if deaths[:1] == ["memory"]:
    print("MemoryError", file=sys.stderr)
    sys.exit(1)
if deaths[:1] == ["kill"]:
    os.kill(os.getpid(), signal.SIGKILL)
for one in items:
    print(json.dumps({"event": "item", "item": one["item"], "result": {}}))
print(json.dumps({"event": "end", "cpu_seconds": 0, "loading_seconds": 0}))
"""


class Steps:
    """The steps of a plan over a checkpoint `source`, and runners that die as they are told."""

    def __init__(self, folder: Path, source: Path, plan: Plan, store: Store) -> None:
        self.folder, self.source = folder, source
        self.context = make_context(plan, store, folder)

    def step(self, kind: str) -> Step:
        """Return the first step of a kind; what it needs is there."""
        for original in self.context.plan.originals:
            if original.kind != kind:
                self.context.originals |= {key: Original(self.folder) for key in original.makes}
        return next(step for step in self.context.plan.steps if step.kind == kind)

    def die(self, *deaths: str) -> None:
        """Have the next runners die so: "kill" or "memory"."""
        (self.folder / "deaths.json").write_text(json.dumps(deaths), encoding="utf-8")

    @property
    def seen(self) -> list[dict[str, Any]]:
        """What each runner found."""
        text = (self.folder / "seen.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]

    def check_published(self, key: str) -> None:
        """What is in the store is what the last runner made."""
        found = self.context.originals[key]
        assert found.reason is None
        assert found.folder is not None
        names = sorted(path.name for path in found.folder.rglob("*"))
        assert names == ["done", MANIFEST]

    def modes(self) -> dict[str, int]:
        """Return how the user's own files may be used."""
        paths = [path for path in self.source.iterdir() if path.is_file()]
        return {path.name: stat.S_IMODE(path.stat().st_mode) for path in paths}


@pytest.fixture(scope="module")
def planned(
    tmp_path_factory: pytest.TempPathFactory, checkpoint: Callable[..., Path]
) -> tuple[Path, Plan, Store]:
    """Return a checkpoint, a plan of it, and the store that knows its files."""
    folder = tmp_path_factory.mktemp("planned")
    source = folder / "my-phi"
    shutil.copytree(checkpoint("phi3", layers=2), source)
    with contextlib.chdir(folder):
        planner = Planner(folder)
        planner.recipe(RECIPE)
        (folder / "t.txt").write_text("A text.\n" * 9000, encoding="utf-8")
        store = planner.prepared()
        return source, planner(f"model={source}", "evaluation=quick"), store


@pytest.fixture
def steps(
    tmp_path: Path, planned: tuple[Path, Plan, Store], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Steps]:
    source, plan, known = planned
    store = Store(tmp_path / "store")
    shutil.copytree(known.root, store.root)
    runner = tmp_path / "runner.py"
    runner.write_text(RUNNER, encoding="utf-8")
    monkeypatch.setattr(process, "WORKER", runner)
    python = SimpleNamespace(python=Path(sys.executable), problem=lambda: None)
    for module in (contexts, remote):
        monkeypatch.setattr(module, "toolchain", lambda name: python)
    found = Steps(tmp_path, source, plan, store)
    before = found.modes()
    yield found
    assert found.modes() == before


def same_beginning(seen: list[dict[str, Any]]) -> None:
    """Every runner found an empty output, and the view that the first one had."""
    for one in seen:
        assert not any(one["outputs"]), one["outputs"]
        assert one["view"] == seen[0]["view"]


def test_the_source_is_read_again_as_if_nothing_had_been(steps: Steps) -> None:
    step = steps.step("source")
    steps.die("kill")
    assert run_step(step, steps.context, 1, alone=True) is False
    assert len(steps.seen) == 2
    same_beginning(steps.seen)
    for key in step.makes:
        steps.check_published(key)
    assert list((steps.context.store.root / "tmp").iterdir()) == []


def test_a_source_that_dies_twice_says_why(steps: Steps) -> None:
    step = steps.step("source")
    steps.die("kill", "kill")
    run_step(step, steps.context, 1, alone=True)
    same_beginning(steps.seen)
    (key,) = step.makes
    assert steps.context.originals[key].reason == "the source: killed by SIGKILL"


@pytest.mark.parametrize("kind", ["source", "reference", "activations", "sensitivity"])
def test_a_step_of_the_original_that_memory_ran_out_for(kind: str, steps: Steps) -> None:
    step = steps.step(kind)
    steps.die("memory")
    assert run_step(step, steps.context, 1, alone=False) is True
    assert run_step(step, steps.context, 1, alone=True) is False
    same_beginning(steps.seen)
    for key in step.makes:
        steps.check_published(key)
    # What it is to go on from is there, and gone in the end.
    kept = [one["states"] for one in steps.seen]
    assert kept == [[], ["states"] if kind == "sensitivity" else []]
    assert list((steps.context.store.root / "partial").iterdir()) == []


def test_artifacts_that_are_built_again(steps: Steps) -> None:
    step = steps.step("build")
    step = step.part_for([one.key for one in step.artifacts if not one.sensitivity])
    steps.die("kill", "kill", "memory")
    run_step(step, steps.context, 1, alone=True)
    assert len(steps.seen) == 1 + len(step.artifacts)
    same_beginning(steps.seen)


def test_grids_are_gone_on_with(steps: Steps) -> None:
    """Whoever killed the runner, what it has finished is met by the next one alone."""
    step = steps.step("quantize")
    steps.die("kill")
    run_step(step, steps.context, 1, alone=True)
    (key,) = step.makes
    assert "killed by SIGKILL" in (steps.context.originals[key].reason or "")
    for folder in (steps.context.store.root / "partial" / key).iterdir():
        shutil.rmtree(folder / "tmp")
        shutil.rmtree(folder / "weights")
    run_step(step, steps.context, 1, alone=True)
    first, second = steps.seen
    assert first["view"] == second["view"]
    assert (second["outputs"], second["states"]) == ([["done"]], ["states"])
    steps.check_published(key)


def test_a_job_that_memory_ran_out_for(
    steps: Steps, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    step = steps.step("reference")
    assert isinstance(step, OriginalStep)
    plan, store = steps.context.plan, steps.context.store
    for original in plan.originals:
        if original.kind == "source":
            with store.workspace() as folder:
                store.publish_reference(original.key, folder)
    monkeypatch.setenv("PHIBUILD_TOOLCHAINS", "")
    monkeypatch.setattr(remote, "program_digest", lambda *of: "the same")
    task = remote.RemoteStep(
        plan=plan.only(step), step=step, store=store.root, toolchains=tmp_path, folder=tmp_path,
        program="the same", waiter=tmp_path / "waiter", machine="", timeout=60, cores=1,
    )  # fmt: skip
    steps.die("memory")
    handler = signal.getsignal(signal.SIGTERM)
    try:
        remote.run_step(task)
    finally:
        signal.signal(signal.SIGTERM, handler)
    found = remote.read_result(tmp_path)
    assert found is not None
    assert found.problem is None
    same_beginning(steps.seen)
    assert store.reference(step.key) is not None


def test_what_is_published_and_not_there_has_a_reason(
    steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else builds would be told of a folder None."""
    publish = Store.publish_reference

    def damaged(store: Store, key: str, folder: Path) -> Path:
        done = publish(store, key, folder)
        (done / "done").unlink()
        return done

    monkeypatch.setattr(Store, "publish_reference", damaged)
    for kind in ("source", "quantize"):
        step = steps.step(kind)
        steps.die()
        run_step(step, steps.context, 1, alone=True)
        for key in step.makes:
            found = steps.context.originals[key]
            assert found.folder is None
            assert found.reason is not None
            assert found.reason.endswith("what it left is not in the store as it was written")


def test_half_of_a_file_of_codes_is_swept(tmp_path: Path) -> None:
    """Of one that was being written, and of one that was finished in the same instant."""
    grid = Grid(bits=4, group_size=32, scale="F16", zero="middle")
    shapes: Mapping[str, tuple[int, int]] = {"w": (2, 32)}
    rows = Rows(np.zeros((2, 32), np.uint8), *(np.ones((2, 1), np.float32) for _ in range(2)))
    for number, ended in enumerate((False, True)):
        writer = CodeWriter(tmp_path, layer_file(number), grid, shapes)
        writer.write("w", 0, rows)
        if ended:
            writer.finish()
    assert len(list(tmp_path.iterdir())) == 3
    sweep_parts(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [layer_file(1)]
    again = CodeWriter(tmp_path, layer_file(0), grid, shapes)
    again.write("w", 0, rows)
    again.finish()
    again.close()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [layer_file(0), layer_file(1)]
