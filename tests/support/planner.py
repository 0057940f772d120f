"""Plans of small recipes in a folder of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from phibuild.config.catalogue import Catalogue
from phibuild.config.compose import compose_build
from phibuild.config.executors import ExecutorSettings
from phibuild.execute.forecast import Forecast, forecast
from phibuild.planning.making import make_plan
from phibuild.planning.matrix import expand
from phibuild.planning.plan import Plan
from phibuild.store.store import Store
from support.documents import some_facts, some_measure

RECIPE = """\
devices:
  intel_n100: {llamacpp: [int4, int8], openvino: [int4]}
  ai_pc_intel: {llamacpp: [int4]}
  raspberry_pi_5: {llamacpp: [int4]}
"""


class Planner:
    """Plans in a working directory of its own, with a store of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Store(folder / "store")
        self.recipe(RECIPE)

    def recipe(self, text: str) -> None:
        path = self.folder / "recipes" / "mine.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def __call__(
        self,
        *words: str,
        hashed: bool = True,
        config_dir: Path | None = None,
        memory: int | None = None,
    ) -> Plan:
        catalogue = Catalogue(config_dir)
        composition = compose_build(("recipe=mine", *words), catalogue, sweep=False)
        return make_plan(
            expand(composition, catalogue),
            composition.recipes[0].config.evaluation,
            self.store,
            read_weights=hashed,
            memory_limit=memory,
        )

    def times(self, plan: Plan) -> Forecast:
        """Return how long a plan is likely to take, by what the store knows."""
        return forecast(plan, ExecutorSettings(), self.store)

    def keys(self, *words: str) -> dict[str, str]:
        """Return cell, without its model -> key."""
        return {
            cell.cell.id.split(".", 1)[1]: cell.artifact.key
            for cell in self(*words).cells
            if cell.artifact
        }

    def prepared(self) -> Store:
        """Return the store, ready to be written."""
        self.store.prepare()
        return self.store

    def build(self, plan: Plan, file: str = "model.bin") -> None:
        """Put a file into the store under every key of the plan."""
        for artifact in plan.artifacts:
            if not artifact.cached:
                with self.prepared().workspace() as folder:
                    (folder / file).write_bytes(artifact.key.encode())
                    self.store.publish(artifact.key, folder, some_facts())

    def judge(self, plan: Plan) -> None:
        for artifact in plan.artifacts:
            assert artifact.measure_key is not None
            self.store.publish_measure(artifact.measure_key, some_measure())


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Planner:
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return Planner(folder)
