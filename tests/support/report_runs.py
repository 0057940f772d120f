"""Runs without a runner: a plan of shipped backends, a store of small files, results."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from phibuild.config.catalogue import Catalogue
from phibuild.config.compose import compose_build
from phibuild.execute.context import Result
from phibuild.execute.local.executor import Execution
from phibuild.execute.local.scheduler import History, Task, TaskRun
from phibuild.execute.runner.usage import Usage
from phibuild.planning.making import make_plan
from phibuild.planning.matrix import expand
from phibuild.planning.plan import Plan
from phibuild.report.data import make_report
from phibuild.report.documents import Report
from phibuild.store.store import Store
from support.documents import some_facts, some_measure

RECIPE = """\
devices:
  ai_pc_intel:
    llamacpp: [int4, int8]
    openvino: [int4]
    ort_genai: {fp16: {provider: cpu}}
  intel_n100: {llamacpp: [int4]}
gates: {kl: {int4: 0.2}, size: 3 MB}
"""


class Run:
    """A run whose artifacts are small files: a plan, a store, results."""

    def __init__(self, folder: Path) -> None:
        (folder / "recipes").mkdir()
        (folder / "recipes" / "mine.yaml").write_text(RECIPE, encoding="utf-8")
        self.store = Store(folder / "store")
        self.store.prepare()
        self.output = folder / "outputs"
        catalogue = Catalogue()
        composition = compose_build(["recipe=mine"], catalogue, sweep=False)
        config = composition.recipes[0].config
        self.plan: Plan = make_plan(
            expand(composition, catalogue), config.evaluation, self.store, read_weights=True
        )
        self.results = {a.key: Result(a) for a in self.plan.artifacts}

    def result(self, variant: str) -> Result:
        return next(r for r in self.results.values() if r.artifact.variant.name == variant)

    def built(
        self,
        variant: str,
        size: int,
        kl: float | None,
        status: Literal["built", "cached"] = "built",
    ) -> None:
        result = self.result(variant)
        with self.store.workspace() as folder:
            (folder / "model.bin").write_bytes(bytes(size))
            facts = some_facts(build_own_seconds=0.5, build_shared_seconds=1.0)
            self.store.publish(result.artifact.key, folder, facts)
        result.status = status
        result.measure = None if kl is None else some_measure(kl)

    def build_all(self) -> None:
        """int4 of llama.cpp for two devices, int8 too big, OpenVINO lost too much, one skipped."""
        self.built("Q4_K_M", 2_000_000, 0.1)
        self.built("Q8_0", 4_000_000, 0.001, "cached")
        (name,) = {a.variant.name for a in self.plan.artifacts} - {"Q4_K_M", "Q8_0"}
        self.built(name, 1_000_000, 0.3)

    def execution(self, *, interrupted: bool = False) -> Execution:
        """A build beside the reference, then judging that waited for cores."""
        task = Task("build.m.llamacpp", frozenset(), 1, 300 << 20, lambda alone: False)
        beside = {"reference.m"}
        judging = Task("measure.m.llamacpp", frozenset(), 2, 1 << 30, lambda alone: False)
        return Execution(
            self.results,
            History(
                {
                    judging.id: TaskRun(judging, 8.0, 12.0, waited={"cores": 3.0}),
                    task.id: TaskRun(task, 0.5, 4.5, concurrent=beside),
                },
                {"cores": 3.0, "work": 9.0},
            ),
            {task.id: Usage(3.5, 200 << 20)},
            cores=2,
            memory_bytes=8 << 30,
            complete=not interrupted,
        )

    def report(self, *, interrupted: bool = False) -> Report:
        return make_report(
            self.plan, self.execution(interrupted=interrupted), self.store, recipe="mine",
            configuration="recipe: mine\n", command="phibuild recipe=mine", seconds=12.3,
        )  # fmt: skip


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run in an empty folder, of which nothing is built yet."""
    monkeypatch.chdir(tmp_path)
    return Run(tmp_path)
