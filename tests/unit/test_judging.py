"""How a variant is judged on this machine: what the backends say, what plan, gates and notes make
of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from conftest import CommandLine
from phibuild.backends.registry import backend
from phibuild.report.gates import check_gates
from phibuild.schema import Gates, Judging, Precision, Variant
from support.distributions import add_backend, with_site

WHY = "its simulator is not installed"
SPEC = f"""\
from phibuild.backends.llamacpp.spec import LlamaCppSpec
from phibuild.schema import Judging

class Spec(LlamaCppSpec):
    name = "unheard"

    def judging(self, variant):
        if variant.precision == "int4":
            return Judging(how="no", note="{WHY}")
        return Judging(how="substitute", note="its twin")

SPEC = Spec()
"""
RECIPE = """\
devices:
  raspberry_pi_5: {llamacpp: [int8], unheard: [int4, int8]}
gates: {kl: 0.5, top1: 0.5, fits_budget: true}
"""


@pytest.fixture
def unheard(tmp_path: Path, phibuild: CommandLine, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """A command line with a backend, one of whose variants cannot be judged here."""
    add_backend(tmp_path / "site", "unheard", files={"spec.py": SPEC})
    monkeypatch.setenv("PYTHONPATH", with_site(tmp_path / "site"))
    (phibuild.folder / "recipes").mkdir()
    (phibuild.folder / "recipes" / "mine.yaml").write_text(RECIPE, encoding="utf-8")
    return phibuild


def plan(phibuild: CommandLine, *words: str) -> dict[str, Any]:
    done = phibuild("plan", "recipe=mine", "--json", *words)
    assert done.returncode == 0, done.stderr
    data: dict[str, Any] = json.loads(done.stdout)
    return data


def variant(name: str, precision: Precision, **options: Any) -> Variant:
    return Variant(backend=name, precision=precision, name="x", format="x", options=options)


@pytest.mark.parametrize(
    ("name", "options", "how", "note"),
    [
        ("llamacpp", {}, "native", None),
        ("pytorch", {"precision": "fp32"}, "native", None),
        *(("pytorch", {"precision": precision}, "substitute", "its weights in float32 on the CPU")
          for precision in ("int4", "int8", "fp16")),
        ("pytorch", {"scheme": "W8A8"}, "substitute",
         "its rounded weights and activations in float32"),
        ("mlx", {}, "substitute", "its weights in float32 on the CPU"),
        ("openvino", {"target": "cpu"}, "native", None),
        ("openvino", {"target": "gpu"}, "substitute", "OpenVINO's CPU plugin"),
        ("openvino", {"target": "npu"}, "substitute", "OpenVINO's CPU plugin"),
        ("ort_genai", {"provider": "cpu"}, "native", None),
        *(("ort_genai", {"provider": provider}, "substitute", "its graph on the CPU")
          for provider in ("cuda", "dml", "webgpu", "trt_rtx")),
    ],
)  # fmt: skip
def test_what_the_backends_say(
    name: str, options: dict[str, Any], how: str, note: str | None
) -> None:
    found = backend(name).judging(variant(name, **{"precision": "int4", **options}))
    assert (found.how, found.note) == (how, note)


def test_a_note_says_what_instead_or_why_not() -> None:
    assert Judging().model_dump() == {"how": "native", "note": None}
    for how, note in (("native", "x"), ("substitute", None), ("no", None), ("maybe", "x")):
        with pytest.raises(ValidationError):
            Judging.model_validate({"how": how, "note": note})


def test_the_plan_says_how_and_has_no_step_for_what_it_cannot_judge(unheard: CommandLine) -> None:
    data = plan(unheard)
    cells = {cell["id"].split(".", 2)[2]: cell for cell in data["cells"]}
    assert cells["llamacpp.int8"]["judged"] == {"how": "native", "note": None}
    assert cells["llamacpp.int8"]["notes"] == []
    assert cells["unheard.int8"]["judged"] == {"how": "substitute", "note": "its twin"}
    assert cells["unheard.int8"]["notes"] == ["judged by its twin"]
    assert cells["unheard.int4"]["judged"] == {"how": "no", "note": WHY}
    assert cells["unheard.int4"]["notes"] == [f"not judged: {WHY}"]
    steps = {step["id"].split(".")[0] for step in data["steps"]}
    assert {"build", "measure", "reference"} <= steps
    alone = plan(unheard, "backend=unheard", "precision=int4")
    assert {step["id"].split(".")[0] for step in alone["steps"]} == {"source", "build"}
    both = plan(unheard, "backend=unheard")["steps"]
    one = plan(unheard, "backend=unheard", "precision=int8")["steps"]
    assert [step for step in both if step["id"].startswith("measure.")] == [
        step for step in one if step["id"].startswith("measure.")
    ]


def test_the_plan_for_people_has_a_note_where_it_is_not_native(unheard: CommandLine) -> None:
    done = unheard("plan", "recipe=mine", "--wide")
    assert done.stdout.count("judged") == 2
    assert "raspberry_pi_5.unheard.int8: judged by its twin\n" in done.stdout
    assert f"raspberry_pi_5.unheard.int4: not judged: {WHY}\n" in done.stdout
    done = unheard("plan", "recipe=mine", "evaluation=none")
    assert "judged" not in done.stdout


def test_nothing_is_said_where_nothing_is_judged(unheard: CommandLine) -> None:
    data = plan(unheard, "evaluation=none")
    assert [cell["judged"] for cell in data["cells"]] == [None] * 3
    assert [cell["notes"] for cell in data["cells"]] == [[]] * 3


@pytest.mark.parametrize(
    ("judging", "passed"), [(None, None), (Judging(), None), (Judging(how="no", note=WHY), False)]
)
def test_a_gate_that_cannot_be_checked_is_not_passed(
    judging: Judging | None, passed: bool | None
) -> None:
    found = check_gates(
        Gates(kl=0.1, top1=0.5, size=10, fits_budget=True), "int4",
        quality=None, size_bytes=5, fits_budget=True, judging=judging,
    )  # fmt: skip
    assert {gate.name: gate.passed for gate in found} == {
        "kl": passed, "top1": passed, "size": True, "fits_budget": True,
    }  # fmt: skip
    assert [gate.value for gate in found] == [None, None, 5, True]
