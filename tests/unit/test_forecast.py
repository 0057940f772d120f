"""How long steps and plans are likely to take: by what ran before, and by nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest

from phibuild.config.executors import ExecutorSettings, SlurmSettings
from phibuild.execute.forecast import Forecast, forecast
from phibuild.execute.local.scheduler import Limits, Task
from phibuild.planning.plan import Plan
from phibuild.planning.steps import Step
from phibuild.planning.timing import Expected, Times, machine_of, work
from support.planner import Planner, plan

__all__ = ["plan"]
HERE = machine_of(ExecutorSettings())


def step_of(found: Plan, kind: str, backend: str) -> Step:
    return next(s for s in found.steps if (s.kind, s.backend) == (kind, backend))


def of(
    steps: Mapping[str, tuple[float | None, int, int, tuple[str, ...]]], cores: int, memory: int
) -> Forecast:
    """Return a forecast of steps: seconds, cores, memory, needs."""
    tasks = {
        name: Task(name, frozenset(needs), own, bytes, lambda alone: False)
        for name, (_, own, bytes, needs) in steps.items()
    }
    expected = {
        name: None if one[0] is None else Expected(one[0], "same") for name, one in steps.items()
    }
    return Forecast(tasks, expected, Limits(cores, memory), cores)


def scaled(found: Expected | None) -> float:
    """Return the seconds of what is scaled from other steps."""
    assert found is not None
    assert found.basis == "scaled"
    return found.seconds


# -- a plan


STEPS: dict[str, tuple[float | None, int, int, tuple[str, ...]]] = {
    "source": (10, 1, 10, ()),
    "reference": (20, 1, 10, ("source",)),
    "build.a": (30, 1, 10, ("source",)),
    "build.b": (5, 1, 10, ("source",)),
    "measure.a": (40, 2, 10, ("reference", "build.a")),
}


def test_steps_go_side_by_side_as_the_executor_has_them() -> None:
    """source 0-10; reference 10-30 and build.a 10-40; build.b 30-35; measure.a 40-80."""
    left = of(STEPS, 2, 100).left()
    assert (left.seconds, left.unknown) == (80, 0)


def test_one_core_takes_them_one_by_one() -> None:
    alone = {name: (one[0], 1, one[2], one[3]) for name, one in STEPS.items()}
    assert of(alone, 1, 100).left().seconds == 105


def test_memory_keeps_steps_apart() -> None:
    assert of(STEPS, 2, 15).left().seconds == 105


def test_as_many_as_there_are_without_a_limit() -> None:
    assert of(STEPS, 1000, 1000).left().seconds == 80  # the longest way


def test_what_ran_is_taken_off() -> None:
    found = of(STEPS, 2, 100)
    assert found.left({"build.a": 25.0}, ["source", "reference", "build.b"]).seconds == 45
    assert found.left({"measure.a": 90.0}, STEPS.keys() - {"measure.a"}).seconds == 0  # overdue
    assert found.left({}, STEPS).seconds == 0


def test_what_is_not_known_is_counted() -> None:
    some = {**STEPS, "build.a": (None, 1, 10, ("source",))}
    left = of(some, 2, 100).left()
    assert (left.seconds, left.unknown) == (70, 1)
    assert of(some, 2, 100).left({}, ["build.a"]).unknown == 0


def test_needs_that_are_not_of_the_plan_do_not_block() -> None:
    assert of({"a": (3, 1, 1, ("toolchain.x",))}, 1, 10).left().seconds == 3


# -- a step


def test_nothing_is_known_at_first(plan: Planner) -> None:
    found = plan()
    times = Times(plan.prepared(), HERE)
    assert all(times.expected(step, found, 1) is None for step in found.steps)
    left = forecast(found, ExecutorSettings(), plan.store).left()
    assert (left.seconds, left.unknown) == (0, len(found.steps))


def test_the_same_step_takes_what_it_took(plan: Planner) -> None:
    found, times = plan(), Times(plan.prepared(), HERE)
    step = step_of(found, "build", "llamacpp")
    for seconds in (10.0, 100.0, 12.0):
        times.note(step, found, 1, seconds, 4.0)
    assert times.expected(step, found, 1) == Expected(12.0, "same")  # one that was disturbed
    for kind, backend in (("build", "openvino"), ("measure", "llamacpp")):
        assert times.expected(step_of(found, kind, backend), found, 1) is None


def test_other_machines_say_nothing(plan: Planner) -> None:
    found = plan()
    step = step_of(found, "build", "llamacpp")
    Times(plan.prepared(), "another").note(step, found, 1, 10.0, 4.0)
    assert Times(plan.store, HERE).expected(step, found, 1) is None


def test_other_work_is_scaled_but_for_imports(plan: Planner) -> None:
    """Two variants took 10 s, 4 of them imports; one takes 4 s and half of the rest."""
    both, times = plan(), Times(plan.prepared(), HERE)
    times.note(step_of(both, "build", "llamacpp"), both, 1, 10.0, 4.0)
    plan.recipe("devices: {intel_n100: {llamacpp: [int8]}}")
    one = plan()
    step = step_of(one, "build", "llamacpp")
    variants = len(step_of(both, "build", "llamacpp").artifacts)
    assert scaled(times.expected(step, one, 1)) == pytest.approx(4 + 6 / variants)
    assert scaled(times.expected(step, one, 2)) == pytest.approx(4 + 3 / variants)


def test_more_weights_take_longer_until_that_says_nothing(plan: Planner) -> None:
    """4.5 million weights say nothing of 3.8 billion."""
    plan.recipe("devices: {intel_n100: {llamacpp: [int8]}}")
    tiny, times = plan(hashed=False), Times(plan.prepared(), HERE)
    times.note(step_of(tiny, "build", "llamacpp"), tiny, 1, 10.0, 4.0)
    large = plan("model=phi-4-mini", hashed=False)
    step = step_of(large, "build", "llamacpp")
    assert times.expected(step, large, 1) is None
    times.note(step, large, 1, 100.0, 4.0)
    larger = plan("model=phi-4", hashed=False)
    other = step_of(larger, "build", "llamacpp")
    factor = work(other, larger) / work(step, large)
    assert 3 < factor < 5
    assert scaled(times.expected(other, larger, 1)) == pytest.approx(4 + 96 * factor)


def test_evaluation_counts_for_what_runs_a_model(plan: Planner) -> None:
    few, many = plan("evaluation=quick"), plan("evaluation=full")
    for kind in ("reference", "measure"):
        backend = "pytorch" if kind == "reference" else "llamacpp"
        assert work(step_of(many, kind, backend), many) > work(step_of(few, kind, backend), few)
    one, other = (step_of(found, "build", "llamacpp") for found in (few, many))
    assert work(one, few) == work(other, many)


def test_the_last_runs_count_and_no_kind_drives_out_the_others(plan: Planner) -> None:
    found, times = plan(), Times(plan.prepared(), HERE)
    step = step_of(found, "build", "llamacpp")
    times.note(step, found, 2, 7.0, 1.0)
    for _ in range(60):
        times.note(step, found, 1, 20.0, 1.0)
    assert times.expected(step, found, 2) == Expected(7.0, "same")
    for _ in range(2):
        times.note(step, found, 1, 10.0, 1.0)
    assert times.expected(step, found, 1) == Expected(10.0, "same")


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", '{"runs": 3}', '{"runs": [{"key": 1}]}', "[" * 9999]
)
def test_a_damaged_file_is_no_history(plan: Planner, damage: str) -> None:
    found, times = plan(), Times(plan.prepared(), HERE)
    step = step_of(found, "build", "llamacpp")
    times.note(step, found, 1, 10.0, 4.0)
    (path,) = (plan.store.root / "usage").glob("times-*.json")
    assert json.loads(path.read_text(encoding="utf-8"))["runs"][0]["seconds"] == 10.0
    path.write_text(damage, encoding="utf-8")
    assert times.expected(step, found, 1) is None
    times.note(step, found, 1, 3.0, 0.0)
    assert times.expected(step, found, 1) == Expected(3.0, "same")


def test_a_cluster_has_machines_for_all_steps(plan: Planner) -> None:
    found, settings = plan(), SlurmSettings(kind="slurm", cores=4)
    times = Times(plan.prepared(), machine_of(settings))
    for step in found.steps:
        times.note(step, found, 4, 10.0, 1.0)
    # source, then what needs it, then what needs that: as many at once as there are.
    assert forecast(found, settings, plan.store).left().seconds == 30
    one = SlurmSettings(kind="slurm", cores=4, max_jobs=1)
    assert forecast(found, one, plan.store).left().seconds == 10 * len(found.steps)
    assert forecast(found, ExecutorSettings(), plan.store).left().unknown == len(found.steps)
