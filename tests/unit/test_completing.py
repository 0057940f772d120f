"""What a half-typed word may become: from the verbs' declarations, the schema and the folders."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from phibuild.backends.registry import SHIPPED
from phibuild.commands.arguments import VERBS
from phibuild.commands.completing import complete
from phibuild.schema import PRECISIONS, Evaluation, Gates
from unit.test_bad_input import DEVICE


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in {
        "recipes/mine.yaml": "",
        "conf/device/our_kiosk.yaml": DEVICE,
        "conf/device/board.v2.yaml": DEVICE,
        "conf/evaluation/long.yaml": "",
        "own/model/kiosk-model.yaml": "",
        "outputs/mine/latest/logs/phi-4.mac.mlx.int4.log": "",
        "outputs/mine/latest/logs/executor.log": "",
        "other/theirs/latest/logs/phi-4.mac.mlx.int8.log": "",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def words(line: str) -> set[str]:
    """Return the completions at the end of a line, after `phibuild`."""
    *before, last = line.split(" ")
    return set(complete(before, last))


def test_verbs_and_what_build_takes() -> None:
    assert words("") >= {*VERBS, "recipe=", "device=", "evaluation.", "gates."}
    assert words("pl") == {"plan"}
    assert words("recipe=mine pl") == set()
    assert words("--config-dir own pl") == {"plan"}
    assert "--version" in words("--ver")
    assert complete([], "plan")["plan"] == VERBS["plan"].help


@pytest.mark.parametrize("verb", VERBS)
def test_flags_are_those_of_the_verb(verb: str) -> None:
    parser = argparse.ArgumentParser()
    VERBS[verb].declare(parser)
    assert words(f"{verb} -") == set(parser._option_string_actions) - {"-h"}


def test_names_of_ones_own_and_shipped() -> None:
    assert {"recipe=mine", "recipe=iot"} <= words("plan recipe=")
    assert words("plan device=our") == {"device=our_kiosk"}
    assert words("plan model=kio") == set()
    assert words("plan --config-dir own model=kio") == {"model=kiosk-model"}
    assert words("plan --config-dir=own model=kio") == {"model=kiosk-model"}
    assert words("plan evaluation=") == {
        f"evaluation={name}" for name in ("full", "long", "none", "quick", "standard")
    }
    assert words("plan backend=") == {f"backend={name}" for name in SHIPPED}
    assert words("precision=") == {f"precision={name}" for name in PRECISIONS}


def test_keys_and_their_values() -> None:
    assert words("plan evaluation.") == {f"evaluation.{key}=" for key in Evaluation.model_fields}
    assert words("plan gates.") == {f"gates.{key}=" for key in Gates.model_fields}
    assert words("plan ~evaluation.win") == {"~evaluation.windows", "~evaluation.window_tokens"}
    assert words("plan ++gates.fits") == {"++gates.fits_budget="}
    assert {"gates.fits_budget=true", "gates.fits_budget=false"} <= words("gates.fits_budget=")
    assert words("plan executor.kind") == set()
    types = "backends.llamacpp.int4.type="
    assert words(f"plan {types}Q4") == {f"{types}Q4_K_M", f"{types}Q4_0"}
    # A name with a dot in it is one.
    assert words("plan devices.board.v2.mlx.int8.bi") == {"devices.board.v2.mlx.int8.bits="}
    assert words("plan devices.board.v2.mlx.int8.bits=6") == {"devices.board.v2.mlx.int8.bits=6"}
    assert words("plan nothing.at.all=") == set()


def test_no_half_key_stands_alone() -> None:
    """A shell would put a space after it."""
    for line in ("plan devices.our", "plan devices.our_kiosk.lla", "plan backends.mlx.int4"):
        found = words(line)
        assert len(found) > 1
        assert all(one.startswith(line.split()[1]) for one in found)


def test_sweeps() -> None:
    assert words("-m precision=int4,fp") == {"precision=int4,fp16", "precision=int4,fp32"}
    assert words("plan precision=int4,") == set()
    assert "precision=int4,int4" not in words("-m precision=int4,")


def test_what_other_verbs_take() -> None:
    assert words("list ") == {"recipes", "devices", "backends", "models", "precisions"}
    assert words("show ") == {"device", "recipe", "backend", "model"}
    assert words("show backend ") == set(SHIPPED)
    assert words("show device our_kiosk ") == set()
    assert words("completion ") == {"bash", "zsh", "fish"}
    assert words("run phi") == {"phi-4.mac.mlx.int4"}
    assert words("run --output other phi") == {"phi-4.mac.mlx.int8"}
    assert words("report ") == {"mine"}
    assert words("plan --only phi") == {"phi-4.mac.mlx.int4"}
    assert words("toolchain install ml") == {"mlx"}
    assert words("toolchain install mlx lla") == {"llamacpp"}
    assert words("init --from quick") == {"quickstart"}
    assert words("check rec") == {"recipes/"}
    assert words("check recipes/") == {"recipes/mine.yaml"}
    assert words("plan --config-dir o") == {"other/", "outputs/", "own/"}


@pytest.mark.parametrize("text", ["{", '{"$defs": {}}', "[]", "null"])
def test_a_schema_that_is_none_ends_in_no_error(text: str, folder: Path) -> None:
    (folder / "conf" / "schema").mkdir()
    (folder / "conf" / "schema" / "recipe.json").write_text(text)
    assert words("plan recipe=mi") == {"recipe=mine"}
    words("plan evaluation.")
