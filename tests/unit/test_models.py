"""Model choices: what they are called, what they resolve to, and adapters on their bases."""

from __future__ import annotations

import json
import shutil
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from phibuild.checkpoints.facts import Checkpoint
from phibuild.checkpoints.resolve import model_name, resolve_model
from phibuild.config.catalogue import Catalogue
from phibuild.config.compose import compose_build
from phibuild.config.model_choice import ModelChoice
from phibuild.errors import PhibuildError, SourceError
from phibuild.planning.matrix import Matrix, expand

RECIPE = "devices: {raspberry_pi_5: {llamacpp: [int4]}}\n"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    work = tmp_path / "work"
    (work / "recipes").mkdir(parents=True)
    monkeypatch.chdir(work)
    return work


def matrix(*words: str, sweep: bool = False) -> Matrix:
    catalogue = Catalogue()
    return expand(compose_build(words, catalogue, sweep=sweep), catalogue)


def ids(found: Matrix) -> list[str]:
    return [cell.id.split(".raspberry_pi_5")[0] for cell in found.cells]


def choice(reference: str) -> ModelChoice:
    return ModelChoice(path=reference)


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("phi-3.5-mini", "phi-3.5-mini"),
        ("./my-phi", "my-phi"),
        ("./my-phi/", "my-phi"),
        ("/data/runs/checkpoint-500", "checkpoint-500"),
        ("microsoft/phi-4", "phi-4"),
        ("microsoft/phi-4@refs/pr/3", "phi-4"),
        ("./phi@home", "phi-home"),
        (f"/hub/models--microsoft--Phi-4-mini-instruct/snapshots/{COMMIT}", "Phi-4-mini-instruct"),
        (f"/hub/models--me--my--phi/snapshots/{COMMIT}/", "my--phi"),
        (f"/hub/models--phi/snapshots/{COMMIT}", "phi"),
        (f"/elsewhere/snapshots/{COMMIT}", COMMIT),
        ("./Gerät", "Gerät"),
        ("./Gera\u0308t", "Gerät"),
        ("./модель (2)", "модель-2"),
        ("./日本語モデル", "日本語モデル"),
        ("./हिन्दी", "हिन्दी"),
        ("./a  +/b=c d!", "b-c-d"),
        ("./.hidden.", "hidden"),
        ("./+++", "model"),
    ],
)
@pytest.mark.case(
    "names",
    "a Hub snapshot's folder; letters that are not ASCII",
    "-",
    "the repository's name, no commit hash; letters of every script are kept",
)
def test_what_a_checkpoint_is_called(reference: str, name: str) -> None:
    assert model_name(choice(reference)) == name
    assert model_name(ModelChoice(path=reference, name="Kiosk 2024.10")) == "Kiosk-2024.10"


def test_the_folder_one_stands_in_is_called_by_its_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = folder / "models--me--phi-x" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    assert model_name(choice(".")) == "work"
    monkeypatch.chdir(snapshot)
    assert model_name(choice(".")) == "phi-x"
    assert model_name(choice("..")) == "snapshots"


def test_a_link_is_called_as_the_user_called_it(folder: Path) -> None:
    snapshot = folder / "models--me--phi-x" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (folder / "mine").symlink_to(snapshot)
    assert model_name(choice("./mine")) == "mine"


@given(text=st.text(min_size=1))
def test_every_name_can_stand_in_an_id(text: str) -> None:
    """One part of a path, without globs' characters, blanks or a dot in front; stable."""
    name = model_name(ModelChoice(path="x", name=f"a{text}"))
    assert name
    assert not set(name) & set("/\\*?[]{},+=:\"'<>| \t\n\0")
    assert name[0] not in "-."
    assert len(name.encode()) <= 120
    assert name == unicodedata.normalize("NFC", name)
    assert model_name(ModelChoice(path="x", name=name)) == name


def test_letters_and_marks_of_a_long_name_are_cut_between_letters() -> None:
    name = model_name(ModelChoice(path="x", name="日" * 100))
    assert name == "日" * 40


@pytest.mark.parametrize(
    ("data", "wrong"),
    [
        ({}, "names no checkpoint"),
        ({"name": "a"}, "names no checkpoint"),
        ({"path": "a", "base": "b"}, "'path', a whole checkpoint, and 'base' cannot"),
        ({"path": "a", "adapter": "b"}, "'path', a whole checkpoint, and 'adapter' cannot"),
        ({"base": "a"}, "'base' needs an adapter"),
        ({"adapter": "a"}, "'adapter' needs base"),
        ({"base": "a", "adapter": ""}, "'adapter' must not be empty"),
        ({"base": "", "adapter": "a"}, "'base' must not be empty"),
        ({"path": "a", "name": "-"}, "'name' needs a letter or a digit"),
        (["a"], "must be text or a mapping"),
        (5, "must be text or a mapping"),
    ],
)
def test_wrong_choices(data: Any, wrong: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ModelChoice.model_validate(data)
    assert wrong in str(caught.value)


def test_a_choice_is_dumped_as_it_is_written() -> None:
    for data in ("phi-4", {"path": "./a", "name": "b"}, {"base": "phi-4", "adapter": "./a"}):
        found = ModelChoice.model_validate(data)
        assert found.model_dump() == data
        assert ModelChoice.model_validate(found.model_dump()) == found


@pytest.mark.case(
    "names",
    "model: (name: kiosk, path: ./checkpoint-500)",
    "-",
    "cells, files and cards are of kiosk",
)
def test_a_name_of_the_users_own(folder: Path, checkpoint: Callable[..., Path]) -> None:
    shutil.copytree(checkpoint("phi3", layers=1), folder / "checkpoint-500")
    recipe = folder / "recipes" / "mine.yaml"
    recipe.write_text(RECIPE + "model: {name: kiosk, path: ./checkpoint-500}\n", encoding="utf-8")
    found = matrix("recipe=mine")
    assert ids(found) == ["kiosk"]
    assert found.models["kiosk"].folder == folder / "checkpoint-500"
    assert ids(matrix("recipe=mine", "model.name=2024.10")) == ["2024.10"]
    assert ids(matrix("recipe=mine", "~model.name")) == ["checkpoint-500"]
    assert ids(matrix("recipe=mine", "model.path=phi-4")) == ["kiosk"]
    assert matrix("recipe=mine", "model.path=phi-4").models["kiosk"].reference == "phi-4"
    assert ids(matrix("recipe=mine", "model={name: other, path: ./checkpoint-500}")) == ["other"]
    assert ids(matrix("recipe=mine", "model=phi-4")) == ["phi-4"]
    recipe.write_text(RECIPE, encoding="utf-8")
    assert ids(matrix("recipe=mine", "model=./checkpoint-500", "model.name=kiosk")) == ["kiosk"]
    swept = matrix("recipe=mine", "model=phi-4,{name: kiosk, path: ./checkpoint-500}", sweep=True)
    assert ids(swept) == ["phi-4", "kiosk"]


def test_a_name_parts_two_checkpoints_of_one_name(
    folder: Path, checkpoint: Callable[..., Path]
) -> None:
    for name in ("a", "b"):
        shutil.copytree(checkpoint("phi3", layers=1), folder / name / "phi")
    (folder / "recipes" / "mine.yaml").write_text(RECIPE, encoding="utf-8")
    with pytest.raises(PhibuildError, match=r"would both be called 'phi'") as caught:
        matrix("recipe=mine", "model=./a/phi,./b/phi", sweep=True)
    remedy = str(caught.value.problems[0].remedy)
    assert remedy.endswith("{name: NAME, path: ./b/phi}")
    mapping = remedy[remedy.index("{") :].replace("NAME", "other")
    assert ids(matrix("recipe=mine", f"model=./a/phi,{mapping}", sweep=True)) == ["phi", "other"]


def test_the_last_model_of_a_chain_is_the_model(folder: Path) -> None:
    """A mapping does not merge into another recipe's: it would mix two checkpoints."""
    base, mine = folder / "recipes" / "base.yaml", folder / "recipes" / "mine.yaml"
    base.write_text(RECIPE + "model: {base: phi-4, adapter: ./lora}\n", encoding="utf-8")
    mine.write_text("defaults: [base]\nmodel: {path: phi-4-mini, name: x}\n", encoding="utf-8")
    assert matrix("recipe=mine").models["x"].reference == "phi-4-mini"
    mine.write_text("defaults: [base]\nmodel: phi-4-mini\n", encoding="utf-8")
    assert ids(matrix("recipe=mine")) == ["phi-4-mini"]
    base.write_text(RECIPE + "model: phi-4\n", encoding="utf-8")
    mine.write_text("defaults: [_self_, base]\nmodel: {path: x, name: y}\n", encoding="utf-8")
    assert ids(matrix("recipe=mine")) == ["phi-4"]


@pytest.fixture
def adapters(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Record what is asked of phibuild.checkpoints.adapter, whose own tests are elsewhere."""
    asked: list[tuple[Any, ...]] = []
    module: Any = ModuleType("phibuild.checkpoints.adapter")

    def load_adapted(
        base: Checkpoint, folder: Path, name: str, reference: str, where: str | None
    ) -> Checkpoint:
        asked.append((base.reference, folder, name, reference, where))
        return base

    module.load_adapted = load_adapted
    module.base_reference = lambda folder, where: json.loads(
        (folder / "adapter_config.json").read_text("utf-8")
    )["base_model_name_or_path"]
    monkeypatch.setitem(sys.modules, "phibuild.checkpoints.adapter", module)
    return asked


def adapter(folder: Path, base: str) -> Path:
    folder.mkdir()
    config = json.dumps({"base_model_name_or_path": base})
    (folder / "adapter_config.json").write_text(config, encoding="utf-8")
    return folder


def test_an_adapter_is_loaded_on_its_base(folder: Path, adapters: list[tuple[Any, ...]]) -> None:
    lora = adapter(folder / "lora", "phi-4-mini")
    found = {"base": "phi-4", "adapter": "./lora"}
    resolve_model(ModelChoice(**found), Catalogue(), where=lambda key: f"here: {key}")
    resolve_model(ModelChoice(**found, name="kiosk"), Catalogue())
    resolve_model(choice("./lora"), Catalogue(), where=lambda key: f"here: {key}")
    resolve_model(ModelChoice(path="./lora", name="kiosk"), Catalogue())
    assert adapters == [
        ("phi-4", lora, "lora", "phi-4 + ./lora", "here: adapter"),
        ("phi-4", lora, "kiosk", "phi-4 + ./lora", None),
        ("phi-4-mini", lora, "lora", "./lora", "here: path"),
        ("phi-4-mini", lora, "kiosk", "./lora", None),
    ]


def test_an_adapter_on_an_adapter_is_refused(folder: Path) -> None:
    adapter(folder / "one", "./two")
    adapter(folder / "two", "phi-4-mini")
    with pytest.raises(SourceError, match=r"here: base: the base './two' is an adapter itself"):
        resolve_model(
            ModelChoice(base="./two", adapter="./one"), Catalogue(), where=lambda k: f"here: {k}"
        )


def test_a_whole_checkpoint_may_hold_an_adapters_files(
    folder: Path, checkpoint: Callable[..., Path], adapters: list[tuple[Any, ...]]
) -> None:
    shutil.copytree(checkpoint("phi3", layers=1), folder / "merged")
    (folder / "merged" / "adapter_config.json").write_text("{}", encoding="utf-8")
    assert resolve_model(choice("./merged"), Catalogue()).folder == folder / "merged"
    assert adapters == []
