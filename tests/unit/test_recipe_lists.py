"""Lists of precisions are mappings: in recipes, through defaults lists, and under overrides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from phibuild.config.catalogue import Catalogue
from phibuild.config.compose import compose_build
from phibuild.planning.matrix import expand

CELL = "devices.raspberry_pi_5.llamacpp"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    work = tmp_path / "work"
    (work / "recipes").mkdir(parents=True)
    monkeypatch.chdir(work)
    return work


def recipe(text: str, name: str = "mine") -> None:
    Path("recipes", f"{name}.yaml").write_text(text, encoding="utf-8")


def composed(*words: str, name: str = "mine") -> dict[str, Any]:
    config = compose_build([f"recipe={name}", *words], Catalogue(), sweep=False).recipes[0].config
    return config.model_dump()


def cell(*words: str, name: str = "mine") -> Any:
    return composed(*words, name=name)["devices"]["raspberry_pi_5"]["llamacpp"]


LIST = "devices: {raspberry_pi_5: {llamacpp: [int4, int8]}}\n"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), {"int4": {}, "int8": {}}),
        ((f"{CELL}.int4.type=Q5_K_M",), {"int4": {"type": "Q5_K_M"}, "int8": {}}),
        ((f"+{CELL}.fp16.type=F16",), {"int4": {}, "int8": {}, "fp16": {"type": "F16"}}),
        ((f"{CELL}={{fp16: {{}}}}",), {"int4": {}, "int8": {}, "fp16": {}}),
        ((f"{CELL}=[fp16]",), {"fp16": {}}),
        ((f"{CELL}.int4.type=Q5_K_M", f"{CELL}=[int4]"), {"int4": {"type": "Q5_K_M"}}),
        ((f"{CELL}=[int4]", f"{CELL}.int4.type=Q5_K_M"), {"int4": {"type": "Q5_K_M"}}),
        ((f"~{CELL}.int8",), {"int4": {}}),
        ((f"~{CELL}", f"{CELL}=[fp16]"), {"fp16": {}}),
        (("devices.raspberry_pi_5={llamacpp: [int8]}",), {"int8": {}}),
        (("devices={raspberry_pi_5: {llamacpp: {int8: {type: Q8_0}}}}",),
         {"int4": {}, "int8": {"type": "Q8_0"}}),
    ],
)  # fmt: skip
@pytest.mark.case(
    "building",
    "overrides and ~ below a list of precisions",
    None,
    "lists are mappings without options",
)
def test_overrides_of_a_list(words: tuple[str, ...], expected: dict[str, Any]) -> None:
    recipe(LIST)
    assert cell(*words) == expected


def test_overrides_of_a_precision_without_options() -> None:
    recipe("devices:\n  raspberry_pi_5:\n    llamacpp:\n      int4:\n      int8:\n")
    assert cell(f"{CELL}.int8.type=Q8_0") == {"int4": {}, "int8": {"type": "Q8_0"}}


def test_options_of_the_whole_recipe_as_a_list() -> None:
    recipe(LIST + "backends: {llamacpp: [int4]}\n")
    assert composed()["backends"] == {"llamacpp": {"int4": {}}}
    word = "backends.llamacpp.int4.type=Q5_K_M"
    assert composed(word)["backends"] == {"llamacpp": {"int4": {"type": "Q5_K_M"}}}
    catalogue = Catalogue()
    matrix = expand(compose_build(["recipe=mine", word], catalogue, sweep=False), catalogue)
    assert [c.variant and c.variant.name for c in matrix.cells] == ["Q5_K_M", "Q8_0"]


@pytest.mark.parametrize(
    ("base", "own", "expected"),
    [
        ("[int4, int8]", "{int4: {type: Q5_K_M}}", {"int4": {"type": "Q5_K_M"}, "int8": {}}),
        ("{int4: {type: Q5_K_M}}", "[int4, int8]", {"int4": {"type": "Q5_K_M"}, "int8": {}}),
        ("{int4: {type: Q5_K_M}, fp16: }", "[int8, int4]", {"int4": {"type": "Q5_K_M"},
                                                            "int8": {}}),
        ("[int4]", "[int8]", {"int8": {}}),  # a recipe's own word is the last
        ("{int4: {type: Q5_K_M}}", "{int4: }", {"int4": {"type": "Q5_K_M"}}),
        ("{int4: {type: Q5_K_M}}", "{int8: }", {"int4": {"type": "Q5_K_M"}, "int8": {}}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("place", ["devices: {raspberry_pi_5: {llamacpp: %s}}",
                                   "backends: {llamacpp: %s}"])  # fmt: skip
def test_merging_through_a_defaults_list(
    place: str, base: str, own: str, expected: dict[str, Any]
) -> None:
    other = "" if place.startswith("devices") else "devices: {mac: {mlx: [int4]}}\n"
    for defaults, first, last in (("[base, _self_]", base, own), ("[base]", base, own),
                                  ("[_self_, base]", own, base)):  # fmt: skip
        recipe(f"{other}{place % first}\n", "base")
        recipe(f"defaults: {defaults}\n{place % last}\n")
        if defaults == "[_self_, base]":  # the base has the last word
            recipe(f"{other}{place % own}\n", "base")
            recipe(f"defaults: {defaults}\n{place % base}\n")
        data = composed()
        found = data["devices"].get("raspberry_pi_5", {}) or data["backends"]
        assert found["llamacpp"] == expected


def test_three_recipes_deep() -> None:
    recipe("devices: {raspberry_pi_5: {llamacpp: {int4: {type: Q5_K_M}, fp16: , fp32: }}}\n", "a")
    recipe("defaults: [a, _self_]\ndevices: {raspberry_pi_5: {llamacpp: [int4, fp16]}}\n", "b")
    recipe("defaults: [b, _self_]\ndevices: {raspberry_pi_5: {llamacpp: {int8: }}}\n")
    assert cell() == {"int4": {"type": "Q5_K_M"}, "fp16": {}, "int8": {}}
    recipe("defaults: [_self_, b]\ndevices: {raspberry_pi_5: {llamacpp: {int8: , fp16: }}}\n")
    assert cell() == {"fp16": {}, "int4": {"type": "Q5_K_M"}}  # b's list is the last word


def test_other_lists_are_replaced_and_indexed() -> None:
    Path("conf/executor").mkdir(parents=True)
    Path("conf/executor/mine.yaml").write_text("kind: slurm\nsetup: [a, b]\n", encoding="utf-8")
    recipe(LIST)
    assert composed("executor=mine")["executor"]["setup"] == ("a", "b")
    assert composed("executor=mine", "executor.setup=[c]")["executor"]["setup"] == ("c",)
    assert composed("executor=mine", "executor.setup.1=c")["executor"]["setup"] == ("a", "c")
    assert composed("executor=mine", "~executor.setup.0")["executor"]["setup"] == ("b",)


def test_what_one_word_does_another_sees() -> None:
    recipe(LIST + "description: of ${model}\n")
    assert composed("model=./a")["description"] == "of ./a"
    assert composed("description='for ${model}'", "model=./a")["description"] == "for ./a"
