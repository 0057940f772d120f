"""What two real runs differ by, and gates that compare with a run: llama.cpp's own formats."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conftest import CommandLine

RECIPE = "devices:\n  raspberry_pi_5:\n    llamacpp: {{int4: {{type: {type}}}, int8: }}\n{gates}"
INT4 = "phi3-tiny-trained.raspberry_pi_5.llamacpp.int4"
INT8 = "phi3-tiny-trained.raspberry_pi_5.llamacpp.int8"


def write(phibuild: CommandLine, kind: str, gates: str = "") -> None:
    path = phibuild.folder / "recipes" / "one.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(RECIPE.format(type=kind, gates=gates), encoding="utf-8")


def build(phibuild: CommandLine, code: int = 0) -> str:
    done = phibuild("build", "recipe=one", "evaluation=quick")
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def two_runs(phibuild: CommandLine) -> CommandLine:
    """Return where one recipe was built with Q5_K_M, then with Q4_0."""
    for kind in ("Q5_K_M", "Q4_0"):
        write(phibuild, kind)
        build(phibuild)
    return phibuild


def test_two_variants_differ_by_more_than_noise(two_runs: CommandLine) -> None:
    """Q4_0 loses more than twice of what Q5_K_M does, in a fifth less; int8 is the same bytes."""
    done = two_runs("diff", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    cells = {cell["id"]: cell for cell in found["cells"]}
    int4 = cells[INT4]
    assert (int4["variant_a"], int4["variant_b"]) == ("Q5_K_M", "Q4_0")
    assert {"worse", "smaller"} <= set(int4["kinds"])
    figures = {one["figure"]: one for one in int4["figures"]}
    kl = figures["kl"]
    assert kl["windows"] >= 4
    assert (kl["beyond_noise"], kl["verdict"]) == (True, "worse")
    assert kl["relative"] > 1
    # Pairs of windows tell far more than the two means with their errors do.
    reports = [
        two_runs.folder / "outputs" / "one" / name / "report.json"
        for name in (found["a"]["name"].split("/")[1], found["b"]["name"].split("/")[1])
    ]
    errors = [
        json.loads(path.read_text("utf-8"))["cells"][0]["quality"]["kl_error"] for path in reports
    ]
    assert kl["error"] < (errors[0] ** 2 + errors[1] ** 2) ** 0.5
    assert figures["size"]["change"] < 0
    assert cells[INT8]["kinds"] == ["same"]
    assert cells[INT8]["same_artifact"]
    assert all(one["change"] == 0 for one in cells[INT8]["figures"])


def test_what_is_shown_and_what_fails(two_runs: CommandLine) -> None:
    done = two_runs("diff", "one~1", "one", "--fail-if", "kl>+5%", "size>+1%")
    assert done.returncode == 3, done.stderr
    lines = done.stdout.splitlines()
    assert max(len(line) for line in lines) <= 100
    assert any(line.startswith("worse") and INT4 in line for line in lines)
    assert "    Q5_K_M -> Q4_0" in lines
    assert "FAILED: kl>+5%: 1 cell" in lines
    assert "ok: size>+1%" in lines
    assert not any(INT8 in line for line in lines)
    # The other way round nothing is worse, but it is larger.
    done = two_runs("diff", "one", "one~1", "--fail-if", "kl>+5%", "top1<-0.001", "failed", "gone")
    assert done.returncode == 0, done.stdout
    done = two_runs("diff", "one", "one~1", "--fail-if", "size>+1%", "size>+10MB")
    assert done.returncode == 3
    assert "ok: size>+10MB" in done.stdout.splitlines()


def test_report_md_says_what_changed(two_runs: CommandLine) -> None:
    runs = two_runs.folder / "outputs" / "one"
    page = (runs / "latest" / "report.md").read_text("utf-8")
    first, second = sorted(path.name for path in runs.iterdir() if not path.is_symlink())
    assert (runs / "latest").resolve().name == second
    assert f"## What changed since `{first}`" in page
    assert f"| `{INT4}` `Q5_K_M` → `Q4_0` |" in page
    assert "There is no run before this one" in (runs / first / "report.md").read_text("utf-8")
    assert two_runs("report", "--markdown").stdout == page
    assert two_runs("report", second, "--markdown").stdout == page


def test_gates_with_a_baseline(phibuild: CommandLine) -> None:
    """A release with Q5_K_M is kept; Q4_0 is worse than it may be, and smaller."""
    write(phibuild, "Q5_K_M")
    build(phibuild)
    latest = phibuild.folder / "outputs" / "one" / "latest"
    release = phibuild.folder / "releases" / "1.3.0"
    release.mkdir(parents=True)
    (release / "report.json").write_bytes((latest / "report.json").read_bytes())
    gates = (
        "gates:\n  baseline: {name}\n  kl: {{not_worse_than: 1.05}}\n"
        "  size: {{not_larger_than: 1.02}}\n"
    )
    write(phibuild, "Q4_0", gates.format(name="releases/1.3.1"))
    for verb in ("plan", "build"):
        done = phibuild(verb, "recipe=one", "evaluation=quick")
        assert done.returncode == 2
        assert "recipes/one.yaml:5: gates.baseline: no run 'releases/1.3.1'" in done.stderr
        assert done.stdout == ""
    write(phibuild, "Q4_0", gates.format(name="releases/1.3.0"))
    out = build(phibuild, code=3)
    assert f"GATE    {INT4}: kl" in out
    cells = {cell["id"]: cell for cell in phibuild.report("one")["cells"]}
    kl, size = cells[INT4]["gates"]
    assert (kl["name"], kl["passed"], size["name"], size["passed"]) == ("kl", False, "size", True)
    base = kl["baseline"]
    assert (base["run"], base["factor"], base["problem"]) == ("releases/1.3.0", 1.05, None)
    assert base["windows"] >= 4
    assert kl["limit"] == pytest.approx(1.05 * base["value"])
    assert kl["value"] > 2 * base["value"]
    assert cells[INT4]["quality"]["stopped"] in ("gates", "precision")
    # The same bytes are as good as they were, and were not judged again.
    assert all(gate["passed"] for gate in cells[INT8]["gates"])
    assert cells[INT8]["status"] == "cached"
    # And the same build again does nothing.
    assert "nothing to do" in build(phibuild, code=3)


def test_the_run_before_as_a_baseline(phibuild: CommandLine) -> None:
    gates = "gates: {baseline: latest, kl: {not_worse_by: 0.001}, top1: {not_worse_than: 0.99}}\n"
    write(phibuild, "Q5_K_M", gates)
    out = build(phibuild)  # the first run has none
    assert "a gate compares with nothing: one has no run yet" in " ".join(out.split())
    first = sorted(Path(phibuild.folder / "outputs" / "one").iterdir())[0].name
    write(phibuild, "Q4_0", gates)
    out = build(phibuild, code=3)
    kl, top1 = phibuild.report("one")["cells"][0]["gates"]
    assert kl["baseline"]["run"] == top1["baseline"]["run"] == f"latest ({first})"
    assert (kl["passed"], kl["limit"]) == (False, pytest.approx(kl["baseline"]["value"] + 0.001))
    build(phibuild)  # as good as the run before, which is its own
