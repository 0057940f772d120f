"""Several variants of a precision, from a recipe and from a sweep, built, judged and run."""

from __future__ import annotations

from pathlib import Path

from conftest import CommandLine

RECIPE = """\
devices:
  raspberry_pi_5:
    llamacpp:
      int4:
        - {type: Q4_0, method: gptq}
        - {type: Q4_K_M}
gates: {kl: {int4: 0.2, int4.Q4_K_M: 0.001}}
"""
PI = "phi3-tiny-trained.raspberry_pi_5.llamacpp.int4"


def test_a_sweep_over_types_is_one_report(phibuild: CommandLine) -> None:
    words = ("precision=int4", "backends.llamacpp.int4.type=Q4_K_M,Q5_K_M,IQ4_XS")
    recipe = phibuild.folder / "recipes" / "one.yaml"
    recipe.parent.mkdir()
    recipe.write_text("devices: {intel_n100: {llamacpp: [int4, int8]}}\n", encoding="utf-8")
    done = phibuild("-m", "recipe=one", "evaluation=quick", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    cells = phibuild.report("one")["cells"]
    types = ["Q4_K_M", "Q5_K_M", "IQ4_XS"]
    assert [cell["id"].rpartition(".")[2] for cell in cells] == types
    assert [cell["variant"] for cell in cells] == types
    losses = {cell["variant"]: cell["quality"]["kl_mean"] for cell in cells}
    assert losses["Q5_K_M"] < losses["Q4_K_M"] < losses["IQ4_XS"]
    assert len({cell["artifact_digest"] for cell in cells}) == len(types)
    assert [cell["variant"] for cell in cells if cell["best"]] == ["IQ4_XS"]
    # Each value alone is one of these artifacts.
    done = phibuild("build", "recipe=one", "evaluation=quick", words[0],
                    "backends.llamacpp.int4.type=Q5_K_M")  # fmt: skip
    (cell,) = phibuild.report("one")["cells"]
    assert (cell["id"], cell["status"]) == ("phi3-tiny-trained.intel_n100.llamacpp.int4", "cached")
    assert cell["artifact_digest"] in {one["artifact_digest"] for one in cells}


def test_a_recipe_with_two_variants_is_judged_and_runs(phibuild: CommandLine) -> None:
    recipe = phibuild.folder / "recipes" / "two.yaml"
    recipe.parent.mkdir()
    recipe.write_text(RECIPE, encoding="utf-8")
    done = phibuild("build", "recipe=two", "evaluation=quick")
    assert done.returncode == 3, done.stdout + done.stderr
    cells = phibuild.report("two")["cells"]
    assert [cell["id"] for cell in cells] == [f"{PI}.Q4_0-gptq", f"{PI}.Q4_K_M"]
    assert [[gate["passed"] for gate in cell["gates"]] for cell in cells] == [[True], [False]]
    assert [cell["gates"][0]["limit"] for cell in cells] == [0.2, 0.001]
    assert f"GATE    {PI}.Q4_K_M: kl" in done.stdout
    run = phibuild.folder / "outputs" / "two" / "latest"
    for cell in cells:
        assert (run / cell["artifact"] / "manifest.json").is_file()
        assert (run / "logs" / f"{cell['id']}.log").read_text("utf-8").endswith(": built\n")
    assert [Path(cell["artifact"]).name for cell in cells] == [
        "phi3-tiny-trained-llamacpp-int4-Q4_0-gptq", "phi3-tiny-trained-llamacpp-int4-Q4_K_M",
    ]  # fmt: skip
    done = phibuild("run", f"{PI}.Q4_0-gptq", "def main(argv):", "--max-tokens", "8")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert "8 tokens in" in done.stderr
    done = phibuild("run", PI, "def main(argv):")
    assert done.returncode == 2
    assert PI in done.stderr
