"""Memory that steps are given: bounds, corrected by what earlier runs took; and what never fits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phibuild.config.catalogue import Catalogue
from phibuild.config.compose import compose_build
from phibuild.planning.making import make_plan
from phibuild.planning.matrix import expand
from phibuild.planning.memory import MemoryNeed, memory_need, note_lack, note_peak
from phibuild.planning.plan import Plan
from phibuild.store.store import Store
from phibuild.system import machine
from support.quickstart import QUICKSTART

GIB = 1 << 30
KIND = {"step": "build"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store")
    store.prepare()
    return store


def test_without_a_run_the_bound_holds(store: Store) -> None:
    found = memory_need(store, KIND, 5 * GIB)
    assert (found.bytes, found.measured) == (5 * GIB, None)


def test_what_runs_took_corrects_the_bound_in_both_directions(store: Store) -> None:
    for peak in (GIB, 2 * GIB, GIB):
        note_peak(store, memory_need(store, KIND, 5 * GIB), peak)
    found = memory_need(store, KIND, 5 * GIB)
    assert found.measured == 2 * GIB  # the largest
    assert 2 * GIB < found.bytes < 2.5 * GIB
    note_peak(store, found, 8 * GIB)
    assert memory_need(store, KIND, 5 * GIB).bytes > 8 * GIB
    assert memory_need(store, {"step": "measure"}, 5 * GIB).measured is None  # another kind


def test_only_the_last_runs_count(store: Store) -> None:
    note_peak(store, memory_need(store, KIND, GIB), 9 * GIB)
    for _ in range(5):
        note_peak(store, memory_need(store, KIND, GIB), 2 * GIB)
    assert memory_need(store, KIND, GIB).measured == 2 * GIB


def test_a_kill_raises_the_demand_until_a_run_is_complete(store: Store) -> None:
    note_lack(store, memory_need(store, KIND, GIB), 4 * GIB)
    assert memory_need(store, KIND, GIB).measured == 6 * GIB
    note_lack(store, memory_need(store, KIND, GIB), GIB)  # the larger one counts
    assert memory_need(store, KIND, GIB).measured == 6 * GIB
    note_peak(store, memory_need(store, KIND, GIB), 5 * GIB)
    assert memory_need(store, KIND, GIB).measured == 5 * GIB


def test_a_kill_below_the_bound_leaves_the_bound(store: Store) -> None:
    note_lack(store, memory_need(store, KIND, 10 * GIB), GIB)
    assert memory_need(store, KIND, 10 * GIB).measured == 10 * GIB


@given(st.binary(max_size=60) | st.sampled_from([b"[]", b'{"peaks": 1}', b'{"peaks": ["x"]}']))
def test_a_damaged_record_counts_as_none(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    store = Store(tmp_path_factory.mktemp("store"))
    store.prepare()
    found = memory_need(store, KIND, GIB)
    (store.root / "usage" / f"{found.key}.json").write_bytes(data)
    assert memory_need(store, KIND, GIB) == MemoryNeed(found.key, GIB)
    note_peak(store, found, 2 * GIB)
    assert memory_need(store, KIND, GIB).measured == 2 * GIB


def judging(store: Store, window_tokens: int) -> dict[str, int]:
    """Return backend -> bytes of judging the quickstart's artifacts of Phi-3.5-mini."""
    words = ("recipe=quickstart", "model=phi-3.5-mini", f"evaluation.window_tokens={window_tokens}")
    composition = compose_build(words, Catalogue(), sweep=False)
    matrix = expand(composition, Catalogue())
    measures = make_plan(matrix, composition.recipes[0].config.evaluation, store).measures
    return {step.backend: step.memory_bytes for step in measures}


def test_judging_long_windows_needs_more(store: Store) -> None:
    """Two windows' logits more at least, in float32."""
    short, usual, long = (judging(store, tokens) for tokens in (96, 256, 2048))
    assert set(short) == set(QUICKSTART)
    for name in QUICKSTART:
        assert short[name] <= usual[name] <= long[name] - 2 * (2048 - 512) * 32_064 * 4


# -- what never fits

RECIPE = """\
devices:
  ai_pc_intel: {llamacpp: [int4, int8], ort_genai: [int4, fp32]}
"""


Planner = Callable[..., Plan]


@pytest.fixture
def plan(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> Planner:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.yaml").write_text(RECIPE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)

    def make(limit: int | None, *words: str) -> Plan:
        composition = compose_build(
            ("recipe=mine", "model=phi-3.5-mini", *words), Catalogue(), sweep=False
        )
        matrix = expand(composition, Catalogue())
        evaluation = composition.recipes[0].config.evaluation
        return make_plan(matrix, evaluation, store, memory_limit=limit)

    return make


def names(plan: Plan) -> dict[str, list[str]]:
    """Return step -> variants."""
    steps = [*plan.builds, *plan.measures]
    return {step.id: [artifact.variant.name for artifact in step.artifacts] for step in steps}


def test_without_a_limit_nothing_is_refused(plan: Planner) -> None:
    found = plan(None)
    assert found.refusals == ()
    assert len(names(found)) == 4


def test_only_what_does_not_fit_is_refused(plan: Planner) -> None:
    whole = plan(None)
    largest = max(step.memory_bytes for step in whole.measures)
    found = plan(largest - 1)
    (refusal,) = found.refusals
    assert refusal.stops == "measure"
    assert refusal.memory_bytes == largest
    assert "judging fp32-cpu needs" in refusal.reason
    assert names(found)["measure.phi-3.5-mini.ort_genai"] == ["int4-cpu-b32"]
    assert names(found)["build.phi-3.5-mini.ort_genai"] == ["int4-cpu-b32", "fp32-cpu"]


def test_a_reference_that_does_not_fit_stops_the_judging_alone(
    plan: Planner,
) -> None:
    # So many windows that the original needs more for them than for being read.
    many = "evaluation.windows=2000"
    (reference,) = plan(None, many).references
    found = plan(reference.memory_bytes - 1, many)
    assert (found.measures, found.references) == ((), ())
    assert [len(step.artifacts) for step in found.builds] == [2, 2]
    (refusal,) = (one for one in found.refusals if one.step.startswith("reference"))
    assert len(refusal.artifacts) == 4


def test_builds_that_do_not_fit_together_are_built_one_by_one(plan: Planner, store: Store) -> None:
    together = next(step for step in plan(None).builds if step.backend == "llamacpp")
    note_peak(store, together.need, 60 * GIB)
    found = plan(20 * GIB)
    ids = [step.id for step in found.builds if step.backend == "llamacpp"]
    assert ids == ["build.phi-3.5-mini.llamacpp.1", "build.phi-3.5-mini.llamacpp.2"]
    assert found.refusals == ()


def test_a_limit_below_everything_refuses_everything(plan: Planner) -> None:
    found = plan(1)
    assert found.steps == ()
    assert {key for one in found.refusals for key in one.artifacts} == {
        artifact.key for artifact in found.artifacts
    }


# -- the machine


@pytest.mark.parametrize("version", [1, 2])
def test_a_control_group_is_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    groups = Path("/proc/self/cgroup")
    if not groups.exists():
        pytest.skip("control groups are Linux's")
    lines = [line.split(":", 2) for line in groups.read_text("ascii").splitlines()]
    names = {controllers: name for _, controllers, name in lines}
    whole = machine.total_memory()
    if version == 2:
        root, files = tmp_path, ("memory.max", "memory.current", "inactive_file")
    else:
        root = tmp_path / "memory"
        files = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    name = names.get("" if version == 2 else "memory")
    if name is None:
        pytest.skip(f"this system has no control groups of version {version}")
    folder = (root / name.lstrip("/")).parent  # the limit of a group above counts, too
    if name == "/":
        folder = root
    folder.mkdir(parents=True, exist_ok=True)
    (folder / files[0]).write_text(f"{3 * GIB}\n", "ascii")
    (folder / files[1]).write_text(f"{GIB}\n", "ascii")
    (folder / "memory.stat").write_text(f"anon 1\n{files[2]} {GIB // 2}\n", "ascii")
    monkeypatch.setattr(machine, "_GROUPS", tmp_path)
    assert machine.total_memory() == min(3 * GIB, whole)
    assert machine.usable_memory() == min(2 * GIB, whole - GIB)
    assert machine.available_memory() <= 3 * GIB // 2
