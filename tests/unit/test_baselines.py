"""Gates that compare with a run: which run, which of its cells, what is judged and what passes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from phibuild.config.catalogue import Catalogue
from phibuild.config.compose import Composition, compose_build
from phibuild.errors import ConfigError
from phibuild.planning.baselines import Baseline, judged_comparisons
from phibuild.planning.matrix import Matrix, expand
from phibuild.report.baseline_gates import baseline_notes, check_baseline
from phibuild.report.baselines import load_baselines, with_baselines
from phibuild.report.writing import new_run, write_run
from phibuild.schema import Cell, Judging, document_text
from phibuild.store.documents import Quality, WindowQuality
from support.documents import some_measure
from support.report_runs import RECIPE, Run

COMPARED = RECIPE.replace(
    "gates: {kl: {int4: 0.2}, size: 3 MB}",
    "gates:\n  baseline: BASE\n"
    "  kl: {not_worse_than: 1.05}\n  top1: {not_worse_by: 0.01}\n  size: {not_larger_than: 1.5}",
)
LOSSES = [0.08, 0.12, 0.09, 0.11, 0.10]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    return Run(tmp_path)


def judged(losses: list[float], *, text: float = 0.0) -> Quality:
    """Return what judging found on windows of these KL."""
    quality = some_measure(sum(losses) / len(losses)).quality
    by_window = [
        WindowQuality(window=n, kl=kl, top1=0.9, nll=2.0, reference_nll=1.0 + n / 10 + text)
        for n, kl in enumerate(losses)
    ]
    return quality.model_copy(update={"by_window": by_window})


def written(run: Run, losses: list[float]) -> Path:
    """Build all, have Q4_K_M lose so much, write the run; return its folder."""
    run.build_all()
    measure = some_measure().model_copy(update={"quality": judged(losses)})
    run.result("Q4_K_M").measure = measure
    with new_run(run.output, "mine") as folder:
        write_run(folder, run.plan, run.results, run.store, run.report())
    return folder


def composed(baseline: str, name: str = "mine") -> Composition:
    Path("recipes", f"{name}.yaml").write_text(COMPARED.replace("BASE", baseline), "utf-8")
    return compose_build([f"recipe={name}"], Catalogue(), sweep=False)


def matrix(composition: Composition, output: Path) -> Matrix:
    runs = load_baselines(composition, output)
    return with_baselines(expand(composition, Catalogue()), runs)


def cell(found: Matrix, name: str) -> Cell:
    return next(one for one in found.cells if one.id.endswith(name))


def test_a_baseline_by_all_its_names(run: Run) -> None:
    folder = written(run, LOSSES)
    report = Path("releases") / "1.3.0.json"
    report.parent.mkdir()
    report.write_bytes((folder / "report.json").read_bytes())
    names = ("mine", "latest", folder.name, str(folder), f"{folder}/report.json", str(report))
    for name in names:
        found = matrix(composed(name), run.output)
        baseline = found.baselines[cell(found, "ai_pc_intel.llamacpp.int4").id]
        assert baseline.run == (f"latest ({folder.name})" if name == "latest" else name)
        assert (baseline.figures["size"], baseline.problem) == (2_000_000, None)
        assert baseline.figures["kl"] == pytest.approx(0.1)
        assert [one["kl"] for one in baseline.windows] == LOSSES


@pytest.mark.parametrize(
    ("name", "what"),
    [("mina", "no run 'mina'"), ("releases/1.3.0", "no run 'releases/1.3.0'"),
     ("mine~1", "no run 'mine~1': there are not so many before it"), ("~nobody/x", "no run")],
)  # fmt: skip
def test_a_baseline_that_is_not_there_is_an_error_with_its_place(
    run: Run, name: str, what: str
) -> None:
    written(run, LOSSES)
    with pytest.raises(ConfigError) as error:
        load_baselines(composed(name), run.output)
    (problem,) = error.value.problems
    assert problem.what.startswith(f"gates.baseline: {what}")
    assert problem.where == "recipes/mine.yaml:8"


def test_a_damaged_baseline_is_an_error_with_its_place(run: Run) -> None:
    Path("broken.json").write_text("{", "utf-8")
    with pytest.raises(ConfigError, match=r"mine\.yaml:8: gates\.baseline: cannot be .*broken"):
        load_baselines(composed("broken.json"), run.output)


def test_the_first_run_of_a_recipe_has_nothing_to_compare_with(run: Run) -> None:
    found = matrix(composed("latest"), run.output)
    one = cell(found, "ai_pc_intel.llamacpp.int4")
    gates = check_baseline(
        one, found.baselines[one.id], quality=judged(LOSSES), size_bytes=5, judging=Judging()
    )
    assert [(gate.name, gate.limit, gate.passed) for gate in gates] == [
        ("kl", None, None), ("top1", None, None), ("size", None, None),
    ]  # fmt: skip
    assert baseline_notes(gates) == ["a gate compares with nothing: mine has no run yet"]


def test_a_cell_that_the_baseline_has_not_is_told(run: Run) -> None:
    written(run, LOSSES)
    recipe = COMPARED.replace("[int4, int8]", "[int4, fp16]").replace("BASE", "mine")
    Path("recipes", "other.yaml").write_text(recipe, "utf-8")
    composition = compose_build(["recipe=other"], Catalogue(), sweep=False)
    found = matrix(composition, run.output)
    problems = {name.split(".", 1)[1]: one.problem for name, one in found.baselines.items()}
    assert problems == {
        "ai_pc_intel.llamacpp.int4": None,
        "ai_pc_intel.llamacpp.fp16": "mine has no such cell",
        "ai_pc_intel.openvino.int4": None,
        "ai_pc_intel.ort_genai.fp16": "mine has no artifact of it, it was skipped there",
        "intel_n100.llamacpp.int4": None,
    }


def test_a_cell_is_found_again_when_its_precision_gets_a_second_variant(run: Run) -> None:
    written(run, LOSSES)
    recipe = COMPARED.replace("BASE", "mine").replace(
        "llamacpp: [int4, int8]", "llamacpp: {int4: [{type: Q4_K_M}, {type: Q4_0}]}"
    )
    Path("recipes", "more.yaml").write_text(recipe, "utf-8")
    composition = compose_build(["recipe=more"], Catalogue(), sweep=False)
    found = matrix(composition, run.output)
    one, other = cell(found, "llamacpp.int4.Q4_K_M"), cell(found, "llamacpp.int4.Q4_0")
    assert found.baselines[one.id].figures["size"] == 2_000_000
    assert found.baselines[other.id].problem == "mine has no such cell"


def checked(losses: list[float], size: int = 2_000_000, **changes: Any) -> dict[str, Any]:
    """Return the gates of a cell that lost so much on each window beside one that lost LOSSES."""
    composition = composed("mine")
    (one, *_) = expand(composition, Catalogue()).cells
    windows = judged(LOSSES).by_window
    baseline = Baseline(
        "mine", None, "k", {"kl": 0.1, "top1": 0.9, "size": 2_000_000},
        tuple({"window": w.window, "kl": w.kl, "top1": w.top1, "reference_nll": w.reference_nll}
              for w in windows),
    )  # fmt: skip
    gates = check_baseline(
        one, baseline,
        **{"quality": judged(losses), "size_bytes": size, "judging": Judging(), **changes},
    )  # fmt: skip
    return {gate.name: gate for gate in gates}


def test_gates_beside_a_baseline(run: Run) -> None:
    gates = checked([1.04 * kl for kl in LOSSES])
    assert [gate.passed for gate in gates.values()] == [True, True, True]
    assert gates["kl"].limit == pytest.approx(0.105)
    assert gates["kl"].baseline.windows == 5
    assert gates["top1"].limit == pytest.approx(0.89)
    assert gates["size"].limit == 3_000_000
    assert checked([1.06 * kl for kl in LOSSES])["kl"].passed is False
    assert checked(LOSSES, size=3_000_001)["size"].passed is False


def test_the_same_windows_are_compared_whatever_else_was_judged(run: Run) -> None:
    """The fifth window of the baseline was easy: who was not judged on it is not worse for that."""
    gate = checked(LOSSES[:4])["kl"]
    assert (gate.value, gate.limit) == pytest.approx((0.1, 0.105))
    assert gate.baseline.windows == 4
    more = checked([*LOSSES, 0.5, 0.5])["kl"]
    assert (more.value, more.passed, more.baseline.windows) == (pytest.approx(0.1), True, 5)


def test_another_text_is_compared_by_the_means(run: Run) -> None:
    gate = checked([0.2, 0.2, 0.2, 0.2], quality=judged([0.2] * 4, text=3.0))["kl"]
    assert (gate.value, gate.baseline.value, gate.baseline.windows) == (0.2, 0.1, None)
    assert gate.passed is False


def test_what_was_not_judged_is_held_against_a_cell_where_it_cannot_be(run: Run) -> None:
    gates = checked(LOSSES, quality=None, judging=None)
    assert [gate.passed for gate in gates.values()] == [None, None, True]
    gates = checked(LOSSES, quality=None, judging=Judging(how="no", note="for a reason"))
    assert [gate.passed for gate in gates.values()] == [False, False, True]


def test_the_judge_is_told_what_it_has_to_decide(run: Run) -> None:
    written(run, LOSSES)
    found = matrix(composed("mine"), run.output)
    cells = [cell(found, "ai_pc_intel.llamacpp.int4"), cell(found, "intel_n100.llamacpp.int4")]
    kl, top1 = judged_comparisons(cells, found.baselines, "another artifact")
    assert (kl["figure"], kl["factor"]) == ("kl", 1.05)
    assert (top1["figure"], top1["margin"]) == ("top1", -0.01)
    assert [kl["limit"], top1["limit"]] == pytest.approx([0.105, 0.89])
    assert [one["window"] for one in kl["windows"]] == [0, 1, 2, 3, 4]
    # The baseline's own artifact is not worse than itself, and is not judged again for it.
    key = found.baselines[cells[0].id].key
    assert key == run.result("Q4_K_M").artifact.key
    assert judged_comparisons(cells, found.baselines, key) == ()


def test_report_json_says_what_a_gate_compares_with(run: Run) -> None:
    folder = written(run, LOSSES)
    plan = run.plan
    one = plan.cells[0].cell
    baseline = Baseline(f"latest ({folder.name})", None, "k", {"size": 1_000_000})
    gates = one.gates.model_copy(update={"baseline": "latest", "size": {"not_larger_than": 1.02}})
    cells = [
        replace(planned, cell=planned.cell.model_copy(update={"gates": gates}))
        for planned in plan.cells
    ]
    matrix = replace(plan.matrix, baselines={one.id: baseline})
    run.plan = replace(plan, cells=tuple(cells), matrix=matrix)
    report = run.report()
    gate = report.cells[0].gates[-1]
    assert (gate.name, gate.limit, gate.value, gate.passed) == ("size", 1_020_000, 2_000_000, False)
    assert f'"run": "latest ({folder.name})"' in document_text(report)
    assert report.totals.gates_failed >= 1
