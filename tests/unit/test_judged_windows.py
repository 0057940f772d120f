"""Artifacts that hold fewer tokens than a window of the text: the plan says by how many of them
they are judged, or why by none."""

from __future__ import annotations

import json

import pytest

from phibuild.planning.plan import PlanCell
from phibuild.report.notes import cell_notes
from support.devices import SOURCES
from support.planner import Planner, plan

__all__ = ["plan"]  # fixtures

FIXED = ("litert", "executorch", "coreai", "qnn")
"""Backends whose artifacts are made for a number of tokens."""
BOTH = "devices: {raspberry_pi_5: {litert: {int8: {context: 128}}, llamacpp: [int8]}}\n"
LONG = "model: phi-3.5-mini\ndevices: {raspberry_pi_5: {litert: [int8], llamacpp: [int8]}}\n"


def cells(plan: Planner, *words: str) -> dict[str, tuple[PlanCell, list[str]]]:
    """Return the cells of a plan and what is said of them, by backend."""
    found = plan(*words, hashed=False)
    return {
        cell.cell.backend: (cell, cell_notes(cell.cell, found.matrix, cell.artifact))
        for cell in found.cells
    }


def windows_of(plan: Planner, tokens: int) -> dict[str, tuple[PlanCell, list[str]]]:
    return cells(plan, f"evaluation.window_tokens={tokens}")


@pytest.mark.parametrize("name", FIXED)
def test_a_short_context_is_judged_by_the_first_tokens_of_each_window(
    name: str, plan: Planner
) -> None:
    own = f"{{{name}: {{int8: {{context: 128}}}}}}"
    plan.recipe(f"devices: {{copilot_pc_snapdragon: {own}}}\n")
    cell, notes = cells(plan)[name]
    assert cell.artifact is not None
    assert cell.artifact.measure_key is not None
    assert cell.artifact.tokens == 128
    assert notes[-1] == "judged by the first 128 tokens of each window: it holds no more"


def test_windows_that_it_holds_are_judged_whole(plan: Planner) -> None:
    plan.recipe(BOTH)
    for tokens, of_litert in ((128, None), (129, 128), (256, 128)):
        found = windows_of(plan, tokens)
        known = {name: cell.artifact and cell.artifact.tokens for name, (cell, _) in found.items()}
        assert known == {"litert": of_litert, "llamacpp": None}
    _, notes = cells(plan, "evaluation=none")["litert"]
    assert not any("judged" in note for note in notes)


def test_a_device_with_a_short_context_has_its_cells(plan: Planner) -> None:
    device = {
        "title": "Small", "class": "iot", "memory": "8 GiB", "budget": "6 GiB",
        "accelerators": ["cpu"], "context_length": 200, "sources": SOURCES,
    }  # fmt: skip
    folder = plan.folder / "conf" / "device"
    folder.mkdir(parents=True)
    (folder / "small.yaml").write_text(json.dumps(device), encoding="utf-8")
    plan.recipe("devices: {small: {executorch: [int4]}}\n")
    cell, notes = cells(plan)["executorch"]
    assert cell.artifact is not None
    assert cell.artifact.tokens == 128
    assert "judged by the first 128 tokens" in notes[-1]


def test_nothing_is_judged_by_other_rope_factors(plan: Planner) -> None:
    """Over more than 4,096 tokens Phi-3.5's original has its long factors from the first on."""
    plan.recipe(LONG)
    found = windows_of(plan, 8192)
    artifact = found["litert"][0].artifact
    assert artifact is not None
    assert (artifact.measure_key, artifact.tokens) == (None, None)
    assert found["litert"][1][-1] == (
        "not judged: it holds 2,048 tokens, and over windows of 8,192 the original has longrope's "
        "long factors; set evaluation.window_tokens to 4096 at most"
    )
    assert not any("judged" in note for note in found["llamacpp"][1])
    artifact = windows_of(plan, 4096)["litert"][0].artifact
    assert artifact is not None
    assert artifact.tokens == 2048
