"""Importance matrices from end to end: the original's activations, artifacts, what they gain."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import CommandLine

RECIPE = """\
devices:
  intel_n100: {llamacpp: {int4: {type: Q4_K_M}, int8: }}
  ai_pc_intel: {llamacpp: {int4: {type: Q4_K_M, imatrix: TEXT}}}
  raspberry_pi_5: {llamacpp: {int4: {type: Q4_0}}}
  jetson_orin_nano: {llamacpp: {int4: {type: Q4_0, imatrix: TEXT}}}
"""


@pytest.fixture
def work(phibuild: CommandLine, toolchain_python: Callable[[str], Path]) -> CommandLine:
    for name in ("llamacpp", "pytorch"):
        toolchain_python(name)
    (phibuild.folder / "recipes").mkdir()
    return phibuild


def write_recipe(work: CommandLine, text: str) -> None:
    path = work.folder / "recipes" / "mine.yaml"
    path.write_text(RECIPE.replace("TEXT", text), encoding="utf-8")


def test_an_importance_matrix_brings_the_artifact_nearer_to_the_original(
    work: CommandLine,
) -> None:
    write_recipe(work, "embedded")
    done = work("build", "recipe=mine")
    assert done.returncode == 0, done.stdout + done.stderr
    report = work.report("mine")
    kl = {cell["variant"]: cell["quality"]["kl_mean"] for cell in report["cells"]}
    sizes = {cell["variant"]: cell["size_bytes"] for cell in report["cells"]}
    assert kl["Q4_0-imatrix"] < 0.9 * kl["Q4_0"]
    assert kl["Q4_K_M-imatrix"] < 0.98 * kl["Q4_K_M"]
    assert sizes["Q4_0-imatrix"] == pytest.approx(sizes["Q4_0"], rel=0.001)
    (activations,) = (s for s in report["steps"] if s["id"].startswith("activations."))
    assert activations["id"].startswith("activations.phi3-tiny-trained.")

    # The same text from another place is the same artifact; another number of tokens is not.
    text = Path(__file__).parents[2] / "phibuild" / "data" / "phi3-tiny-trained" / "calibration.txt"
    (work.folder / "moved.txt").write_bytes(text.read_bytes())
    write_recipe(work, "moved.txt")
    assert work("build", "recipe=mine").returncode == 0
    assert {cell["status"] for cell in work.report("mine")["cells"]} == {"cached"}
    write_recipe(work, "moved.txt, imatrix_tokens: 1024")
    assert work("build", "recipe=mine", "evaluation=none").returncode == 0
    status = {cell["variant"]: cell["status"] for cell in work.report("mine")["cells"]}
    assert {name for name, found in status.items() if found == "built"} == {
        "Q4_K_M-imatrix", "Q4_0-imatrix",
    }  # fmt: skip


def test_a_text_that_cannot_be_used_fails_the_variants_that_need_it_alone(
    work: CommandLine,
) -> None:
    (work.folder / "short.txt").write_text("too short", encoding="utf-8")
    write_recipe(work, "short.txt")
    done = work("build", "recipe=mine", "evaluation=none")
    assert done.returncode == 1, done.stdout + done.stderr
    reasons = {cell["variant"]: cell["reason"] for cell in work.report("mine")["cells"]}
    for name in ("Q4_K_M-imatrix", "Q4_0-imatrix"):
        reason = reasons.pop(name)
        assert reason.startswith("the original could not be run: the calibration text short.txt")
        assert "give a longer text" in reason
    assert reasons == {"Q4_K_M": None, "Q8_0": None, "Q4_0": None}
