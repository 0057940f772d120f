"""Artifacts that cannot be opened here: what is built to be judged in their place."""

from __future__ import annotations

from phibuild.planning.plan import Plan
from phibuild.planning.steps import PlannedArtifact
from support.planner import Planner, plan

__all__ = ["plan"]

BINARIES = "devices: {copilot_pc_snapdragon: {qnn: [int4]}}"
BOTH = "devices: {copilot_pc_snapdragon: {qnn: {int4: [{}, {form: onnx}]}}}"


def artifacts(plan: Plan) -> dict[str, PlannedArtifact]:
    return {artifact.variant.name: artifact for artifact in plan.artifacts}


def test_it_is_built_with_them(plan: Planner) -> None:
    plan.recipe(BINARIES)
    found = plan()
    binaries, graphs = (artifacts(found)[f"int4-b32-{form}"] for form in ("sc8380xp", "onnx"))
    assert (len(binaries.cells), graphs.cells) == (1, ())
    assert (binaries.opened, graphs.opened) == (graphs.key, graphs.key)
    assert graphs.measure_key is None
    (build,), (measure,) = found.builds, found.measures
    assert set(build.makes) == {binaries.key, graphs.key}
    assert measure.artifacts == (binaries,)
    assert build.id in found.needs(measure)
    assert found.disk_bytes > binaries.estimate.artifact_bytes + graphs.estimate.artifact_bytes - 1


def test_a_cell_of_its_own_is_judged_too(plan: Planner) -> None:
    plan.recipe(BOTH)
    found = plan()
    binaries, graphs = (artifacts(found)[f"int4-b32-{form}"] for form in ("sc8380xp", "onnx"))
    assert len(graphs.cells) == 1
    assert None not in (binaries.measure_key, graphs.measure_key)
    assert binaries.measure_key != graphs.measure_key
    assert (binaries.stand_in, graphs.stand_in) == (graphs.key, None)


def test_without_judging_there_is_none(plan: Planner) -> None:
    plan.recipe(BINARIES)
    found = plan("evaluation=none")
    assert list(artifacts(found)) == ["int4-b32-sc8380xp"]
    assert found.artifacts[0].stand_in is None


def test_what_cannot_be_compiled_needs_none(plan: Planner) -> None:
    """Nor is anything judged; the refusal says what to ask for instead."""
    plan.recipe(BINARIES)
    plenty = plan()
    need = max(step.memory_bytes for step in plenty.builds)
    graphs = artifacts(plenty)["int4-b32-onnx"]
    few = plan(memory=need - 1)
    (refusal,) = (one for one in few.refusals if one.step.startswith("build."))
    assert refusal.artifacts == (artifacts(few)["int4-b32-sc8380xp"].key,)
    assert "form: onnx takes little" in refusal.remedy
    assert not few.builds
    assert not few.measures
    assert graphs.key in {artifact.key for artifact in few.artifacts}
    assert few.disk_bytes == few.artifacts[0].estimate.artifact_bytes
