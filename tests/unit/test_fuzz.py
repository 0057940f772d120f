"""2,000 damaged files and command lines: each ends in a plan, or in exit code 2 with a message.

All in this process; where a command line or a recipe is damaged, through the console's entry point.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import ROOT
from support.fuzz import Fuzz
from support.junk import JSON_VALUES, NUMBERS, OVERRIDES, VALUES, YAML_TEXT, cut_or_flip, mutate

RECIPE = {"devices": {"board": {"llamacpp": ["int4"], "openvino": ["int4"]}}}
DEVICE = {
    "title": "My board", "class": "iot", "memory": "8 GiB", "budget": "6 GiB",
    "accelerators": ["cpu"], "context_length": 4096,
    "sources": {"memory": "its data sheet", "budget": "tried", "context_length": "chosen"},
    "backends": {"llamacpp": {"int4": {"type": "Q4_0"}}},
}  # fmt: skip
CHANCE = st.randoms(use_true_random=False)
JUNK = st.lists(VALUES, min_size=1, max_size=3)
JSON_JUNK = st.lists(JSON_VALUES, min_size=1, max_size=3)


def examples(number: int) -> settings:
    """Return settings with so many examples; half of them without --every (conftest.py)."""
    return settings(
        max_examples=number * settings().max_examples // 100,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


def shipped(folder: str) -> dict[str, Any]:
    """Return the files of a folder of the repository, as data by name."""
    paths = sorted((ROOT / folder).glob("*.yaml"))
    return {path.stem: yaml.safe_load(path.read_text("utf-8")) for path in paths}


RECIPES, DEVICES, MODELS = shipped("recipes"), shipped("conf/device"), shipped("conf/model")
BACKENDS, EVALUATIONS = shipped("conf/backend"), shipped("conf/evaluation")
LOCAL = shipped("conf/executor")["local"]
RECIPES["variants"] = {
    "devices": {"board": {"llamacpp": {"int4": [{"type": "Q4_0"}, None, {"method": "gptq"}]}}},
    "gates": {"kl": {"int4": 0.1, "int4.Q4_0": 0.2}},
}


@pytest.fixture
def fuzz(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fuzz]:
    """Return a Fuzz with a device and a recipe for it; both ends must have been met."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PHIBUILD_STORE", str(tmp_path / "store"))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    write("conf/device/board.yaml", DEVICE)
    write("recipes/mine.yaml", RECIPE)
    fuzz = Fuzz(work)
    yield fuzz
    assert fuzz.ends[2] > 0, "nothing was refused"


def write(name: str, data: Any) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(yaml.safe_dump(data, allow_unicode=True), encoding="utf-8")


@examples(150)
@given(name=st.sampled_from(sorted(RECIPES)), junk=JUNK, chance=CHANCE)
def test_a_damaged_recipe(name: str, junk: list[Any], chance: random.Random, fuzz: Fuzz) -> None:
    write("recipes/mine.yaml", mutate(RECIPES[name], chance, junk))
    fuzz.command("recipe=mine")


@examples(100)
@given(text=YAML_TEXT)
def test_any_text_as_a_recipe(text: str, fuzz: Fuzz) -> None:
    Path("recipes/mine.yaml").write_text(text, encoding="utf-8")
    assert fuzz.command("recipe=mine") == 2


@examples(50)
@given(name=st.sampled_from(sorted(RECIPES.keys() - {"variants"})), chance=CHANCE)
def test_a_recipe_with_damaged_bytes(name: str, chance: random.Random, fuzz: Fuzz) -> None:
    data = (ROOT / "recipes" / f"{name}.yaml").read_bytes()
    Path("recipes/mine.yaml").write_bytes(cut_or_flip(data, chance))
    fuzz.command("recipe=mine")


@examples(100)
@given(name=st.sampled_from(["board", *sorted(DEVICES)]), junk=JUNK, chance=CHANCE)
def test_a_damaged_device(name: str, junk: list[Any], chance: random.Random, fuzz: Fuzz) -> None:
    write("conf/device/board.yaml", mutate({**DEVICE, **DEVICES.get(name, {})}, chance, junk))
    fuzz.plan("recipe=mine")


@examples(125)
@given(name=st.sampled_from(sorted(MODELS)), junk=JUNK, chance=CHANCE)
def test_a_damaged_model(name: str, junk: list[Any], chance: random.Random, fuzz: Fuzz) -> None:
    write("conf/model/mine.yaml", mutate(MODELS[name], chance, junk))
    fuzz.plan("recipe=mine", "model=mine")


@examples(50)
@given(name=st.sampled_from(sorted(BACKENDS)), junk=JUNK, chance=CHANCE)
def test_damaged_defaults_of_a_backend(
    name: str, junk: list[Any], chance: random.Random, fuzz: Fuzz
) -> None:
    for path in Path("conf/backend").glob("*.yaml"):
        path.unlink()
    write(f"conf/backend/{name}.yaml", mutate(BACKENDS[name], chance, junk))
    fuzz.plan("recipe=mine")


@examples(50)
@given(name=st.sampled_from(sorted(EVALUATIONS)), junk=JUNK, chance=CHANCE)
def test_a_damaged_evaluation(
    name: str, junk: list[Any], chance: random.Random, fuzz: Fuzz
) -> None:
    write("conf/evaluation/mine.yaml", mutate(EVALUATIONS[name], chance, junk))
    fuzz.command("recipe=mine", "evaluation=mine")


@examples(50)
@given(junk=JUNK, chance=CHANCE)
def test_a_damaged_executor(junk: list[Any], chance: random.Random, fuzz: Fuzz) -> None:
    write("conf/executor/mine.yaml", mutate(LOCAL, chance, junk))
    fuzz.command("recipe=mine", "executor=mine")


FIGURES = MODELS["phi-4-mini"]["config"]


@pytest.mark.parametrize(
    "name", [name for name in FIGURES if name not in ("rope_scaling", "tie_word_embeddings")]
)
def test_an_extreme_figure_of_a_model(name: str, fuzz: Fuzz) -> None:
    """Whole numbers meet loops, floats and text: each figure takes every extreme."""
    for number in NUMBERS:
        config = {**FIGURES, name: number}
        write("conf/model/mine.yaml", {**MODELS["phi-4-mini"], "config": config})
        fuzz.plan("recipe=mine", "model=mine")


@pytest.mark.parametrize("name", ["memory", "budget", "context_length"])
def test_an_extreme_figure_of_a_device(name: str, fuzz: Fuzz) -> None:
    for number in NUMBERS:
        write("conf/device/board.yaml", {**DEVICE, name: number})
        fuzz.plan("recipe=mine")


@pytest.mark.parametrize("group", ["evaluation", "executor"])
def test_an_extreme_figure_of_a_setting(group: str, fuzz: Fuzz) -> None:
    settings = {"evaluation": EVALUATIONS["quick"], "executor": LOCAL}[group]
    for turn, name in enumerate(name for name, value in settings.items() if value is not True):
        for number in NUMBERS[turn % 2 :: 2]:  # each of them meets every other key
            write(f"conf/{group}/mine.yaml", {**settings, name: number})
            fuzz.command("recipe=mine", f"{group}=mine")


@pytest.fixture
def model(fuzz: Fuzz, checkpoint: Callable[..., Path]) -> Path:
    """Return a checkpoint folder whose files can be written over one by one."""
    source = checkpoint("phi3", layers=1, shards=2, intermediate_size=256)
    copy = fuzz.folder / "my-phi"
    copy.mkdir()
    for path in source.iterdir():
        os.link(path, copy / path.name)
    return copy


def replace(path: Path, data: bytes) -> None:
    path.unlink()  # a link to the checkpoint that all share
    path.write_bytes(data)


@examples(125)
@given(junk=JSON_JUNK, chance=CHANCE)
def test_a_damaged_config(
    junk: list[Any], chance: random.Random, model: Path, fuzz: Fuzz, checkpoint: Callable[..., Path]
) -> None:
    source = checkpoint("phi3", layers=1, shards=2, intermediate_size=256)
    config = json.loads((source / "config.json").read_text("utf-8"))
    replace(model / "config.json", json.dumps(mutate(config, chance, junk)).encode())
    fuzz.plan("recipe=mine", "model=./my-phi")


@examples(75)
@given(
    name=st.sampled_from(
        ["tokenizer_config.json", "model.safetensors.index.json", "generation_config.json"]
    ),
    junk=JSON_JUNK,
    chance=CHANCE,
)
def test_a_damaged_companion(
    name: str,
    junk: list[Any],
    chance: random.Random,
    model: Path,
    fuzz: Fuzz,
    checkpoint: Callable[..., Path],
) -> None:
    source = checkpoint("phi3", layers=1, shards=2, intermediate_size=256)
    for path in source.iterdir():
        (model / path.name).unlink()
        os.link(path, model / path.name)
    data = json.loads((source / name).read_text("utf-8"))
    replace(model / name, json.dumps(mutate(data, chance, junk)).encode())
    fuzz.plan("recipe=mine", "model=./my-phi")


@examples(75)
@given(junk=JSON_JUNK, chance=CHANCE, bytes_too=st.booleans())
def test_a_damaged_header_of_weights(
    junk: list[Any],
    chance: random.Random,
    bytes_too: bool,
    model: Path,
    fuzz: Fuzz,
    checkpoint: Callable[..., Path],
) -> None:
    name = "model-00001-of-00002.safetensors"
    data = (checkpoint("phi3", layers=1, shards=2, intermediate_size=256) / name).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    text = json.dumps(mutate(json.loads(data[8 : 8 + length]), chance, junk)).encode()
    damaged = struct.pack("<Q", len(text)) + text + data[8 + length :]
    replace(model / name, cut_or_flip(damaged, chance) if bytes_too else damaged)
    fuzz.plan("recipe=mine", "model=./my-phi")


@examples(100)
@given(words=st.lists(OVERRIDES, min_size=1, max_size=3), sweep=st.booleans())
def test_any_overrides(words: list[str], sweep: bool, fuzz: Fuzz) -> None:
    shutil.rmtree("conf", ignore_errors=True)
    fuzz.command(*(["-m"] if sweep else []), *words)
