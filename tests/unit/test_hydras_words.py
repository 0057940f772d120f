"""What Hydra itself makes of words that phibuild takes as they are meant."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

CELL = "devices.raspberry_pi_5.llamacpp"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    recipe = "devices: {raspberry_pi_5: {llamacpp: [int4, int8]}}\n"
    (tmp_path / "mine.yaml").write_text(recipe, encoding="utf-8")
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        yield tmp_path


def parsed(word: str) -> Any:
    return OverridesParser.create().parse_override(word)


@pytest.mark.parametrize(
    ("name", "value"),
    [("2024.10", 2024.1), ("2024_10", 202410), ("1.10", 1.1), ("1e5", 100000.0), ("null", None),
     ("true", True), ("-1", -1)],
)  # fmt: skip
@pytest.mark.outside(
    "names", "recipes called 2024.10, 1.10, 1e5, nan, null", "Hydra: numbers, null"
)
def test_names_are_typed(name: str, value: object) -> None:
    found = parsed(f"recipe={name}").value()
    assert (type(found), found) == (type(value), value)
    nan = parsed("recipe=nan").value()
    assert nan != nan


@pytest.mark.outside(
    "names",
    "sweeps and default lists of such names",
    "Hydra: numbers in a sweep, an error in a defaults list",
)
def test_names_of_sweeps_and_default_lists_are_typed(folder: Path) -> None:
    assert list(parsed("recipe=1.10,1e5").sweep_iterator()) == [1.1, 100000.0]
    assert list(parsed("recipe=choice(1.10, 2)").sweep_iterator()) == [1.1, 2]
    for name in ("1.10", "1e5"):
        (folder / f"{name}.yaml").write_text("gates: {kl: 1}\n", encoding="utf-8")
        (folder / "top.yaml").write_text(f"defaults: [{name}]\n", encoding="utf-8")
        with pytest.raises(ValueError, match="float"):
            compose("top")


@pytest.mark.parametrize(
    "name", ["a=b", "my phi (2)", "Gerät", "фи", "o'brien", "[old]", "日本", "~x", "é@1"]
)
@pytest.mark.outside(
    "names", "= or letters that are not ASCII in model=", "Hydra: an error of its grammar"
)
def test_the_grammar_has_no_such_letters(name: str) -> None:
    with pytest.raises(HydraException):
        parsed(f"model=./{name}")


@pytest.mark.parametrize(
    "word", [f"{CELL}.int4.type=Q5_K_M", f"+{CELL}.fp16.type=F16", f"~{CELL}.int8"]
)
@pytest.mark.outside(
    "building", "overrides and ~ below a list of precisions", "Hydra: an error, or a traceback"
)
def test_nothing_is_below_a_list(word: str, folder: Path) -> None:
    with pytest.raises((HydraException, TypeError)):
        compose("mine", [word])
