"""Overrides to a configuration: axes, sweeps in Hydra's grammar, precedence, defaults lists."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from phibuild.config.catalogue import Catalogue
from phibuild.config.compose import Composition, compose_build
from phibuild.config.executors import ExecutorSettings
from phibuild.config.model_choice import ModelChoice
from phibuild.errors import ConfigError
from support.quickstart import QUICKSTART


def compose(*words: str, sweep: bool = False, config_dir: Path | None = None) -> Composition:
    return compose_build(words, Catalogue(config_dir), sweep=sweep)


def problems(*words: str, sweep: bool = False) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        compose(*words, sweep=sweep)
    return [str(problem) for problem in caught.value.problems]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory: the conf/ and recipes/ in it are the user's."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_without_words_it_is_the_quickstart() -> None:
    found = compose()
    assert found.name == "quickstart"
    assert found.axes == {}
    config = found.recipes[0].config
    assert config.model == ModelChoice(path="phi3-tiny-trained")
    assert {name for backends in config.devices.values() for name in backends} == set(QUICKSTART)
    assert (config.evaluation.enabled, config.evaluation.windows) == (True, 20)


@pytest.mark.parametrize(
    ("word", "axis", "values"),
    [
        ("device=mac", "device", ("mac",)),
        ("backend=mlx", "backend", ("mlx",)),
        ("precision=int4", "precision", ("int4",)),
    ],
)
def test_an_axis_selects_one(word: str, axis: str, values: tuple[str, ...]) -> None:
    assert compose(word).axes == {axis: values}


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("phi-4", "phi-4"),
        ("./my-phi", "./my-phi"),
        ("microsoft/phi-4@abc123", "microsoft/phi-4@abc123"),
        ("'/a b/phi'", "/a b/phi"),
        ("./a b (2)=c", "./a b (2)=c"),
        ("./a\\=b", "./a=b"),  # as Hydra has it escaped
        ("2024.10", "2024.10"),
        ("null", "null"),
    ],
)
def test_the_model_of_the_command_line_is_the_recipes(text: str, reference: str) -> None:
    found = compose(f"model={text}")
    assert found.recipes[0].config.model == ModelChoice(path=reference)
    assert found.models_of(found.recipes[0]) == (ModelChoice(path=reference),)


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("precision=int4,int8", ("int4", "int8")),
        ("precision=int8,int4,int8", ("int8", "int4")),  # each once, in the order given
        ("precision=choice(int4,fp16)", ("int4", "fp16")),
        ("precision=glob(int*)", ("int4", "int8")),
        ("precision=glob(*,exclude=fp*)", ("int4", "int8")),
        ("precision=glob([int4,fp*])", ("int4", "fp16", "fp32")),
        ("backend=glob(*open*)", ("openvino",)),
        ("device=glob(android_*)", ("android_flagship", "android_midrange")),
    ],
)  # fmt: skip
def test_sweeps_are_hydras_grammar(word: str, values: tuple[str, ...]) -> None:
    assert compose(word, sweep=True).axes[word.split("=")[0]] == values


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("model=range(1,4)", ("1", "2", "3")),
        ("model=phi-4,./b", ("phi-4", "./b")),
        ("model=1.10, 1e5 ,null", ("1.10", "1e5", "null")),
        ("model=choice(1.10,1e5)", ("1.10", "1e5")),
        ("model='./a,b',./c\\,d,\"e'f\"", ("./a,b", "./c,d", "e'f")),
    ],
)
def test_models_are_swept(word: str, values: tuple[str, ...]) -> None:
    assert compose(word, sweep=True).models == tuple(ModelChoice(path=name) for name in values)


def test_shuffled_and_sorted_sweeps() -> None:
    words = "precision=sort(int8,int4)", "precision=shuffle(int8,int4)"
    found = [compose(word, sweep=True).axes["precision"] for word in words]
    assert found[0] == ("int4", "int8")
    assert sorted(found[1]) == ["int4", "int8"]


def test_a_sweep_of_recipes_is_one_run() -> None:
    found = compose("recipe=mobile,iot", "precision=int4,int8", sweep=True)
    assert found.name == "mobile+iot"
    assert [recipe.name for recipe in found.recipes] == ["mobile", "iot"]
    assert found.axes["precision"] == ("int4", "int8")
    assert "android_flagship" in found.recipes[0].config.devices
    assert "android_flagship" not in found.recipes[1].config.devices


def test_a_sweep_needs_the_flag() -> None:
    (message,) = problems("precision=int4,int8")
    assert "command line: precision=int4,int8" in message
    assert "-m precision=int4,int8" in message


def test_other_keys_cannot_be_swept() -> None:
    (message,) = problems("executor.cores=1,2", sweep=True)
    assert "'executor.cores' cannot be swept" in message


@pytest.mark.parametrize("word", ["precision=[int4,int8]", "device={mac: 1}", "~device", "+model=x",
                                  "model="])  # fmt: skip
def test_an_axis_takes_one_name(word: str) -> None:
    assert len(problems(word)) == 1


def test_values_of_the_recipe_can_be_set() -> None:
    config = compose("gates.kl=0.5", "+gates.size='3 GB'", "executor.memory=12 GiB",
                     "description='a b'").recipes[0].config  # fmt: skip
    assert (config.gates.kl, config.gates.size) == (0.5, 3_000_000_000)
    assert isinstance(config.executor, ExecutorSettings)
    assert config.executor.memory == 12 << 30
    assert config.description == "a b"


def test_a_key_can_be_taken_away() -> None:
    devices = compose("~devices.mac").recipes[0].config.devices
    assert "mac" not in devices
    assert "raspberry_pi_5" in devices


def test_a_cell_can_be_added() -> None:
    config = compose("devices.intel_n100.llamacpp=[int4]").recipes[0].config
    assert config.devices["intel_n100"] == {"llamacpp": {"int4": {}}}


@pytest.mark.parametrize(("name", "enabled"), [("none", False), ("quick", True), ("full", True)])
def test_groups(name: str, enabled: bool) -> None:
    assert compose(f"evaluation={name}").recipes[0].config.evaluation.enabled is enabled


def test_a_value_of_a_group() -> None:
    config = compose("evaluation=quick", "evaluation.windows=3").recipes[0].config
    assert (config.evaluation.windows, config.evaluation.decode_tokens) == (3, 16)


def test_weights_that_are_not_finite_are_for_who_insists(folder: Path) -> None:
    assert compose().allow_nonfinite is False
    assert compose("allow_nonfinite=true").allow_nonfinite is True
    write(
        folder / "recipes" / "mine.yaml", "allow_nonfinite: true\ndevices: {mac: {mlx: [int4]}}\n"
    )
    found = compose("recipe=mine")
    assert found.allow_nonfinite is True
    assert found.recipes[0].config.allow_nonfinite is True


def test_where_a_value_was_written(folder: Path) -> None:
    write(folder / "recipes" / "mine.yaml", "model: phi-4\ndevices:\n  mac: {mlx: [int4]}\n")
    recipe = compose("recipe=mine", "gates.kl=0.5").recipes[0]
    assert recipe.where(("devices", "mac", "mlx")) == "recipes/mine.yaml:3"
    assert recipe.where(("gates", "kl")) == "command line: gates.kl=0.5"
    assert recipe.where(("model",)) == "recipes/mine.yaml:1"


def test_the_users_recipe_comes_before_the_shipped_one(folder: Path, tmp_path: Path) -> None:
    text = "description: {}\ndevices: {{mac: {{mlx: [int4]}}}}\n"
    write(folder / "recipes" / "quickstart.yaml", text.format("mine"))
    assert compose().recipes[0].config.description == "mine"
    own = tmp_path / "own"
    write(own / "recipes" / "quickstart.yaml", text.format("config-dir"))
    assert compose(config_dir=own).recipes[0].config.description == "config-dir"
    assert compose("recipe=iot").recipes[0].config.description != "mine"


@pytest.mark.parametrize("inner", ["", "conf"])
def test_the_users_groups_come_before_the_shipped_ones(tmp_path: Path, inner: str) -> None:
    own = tmp_path / "own"
    write(own / inner / "evaluation" / "quick.yaml", "windows: 1\n")
    write(own / inner / "evaluation" / "tiny.yaml", "windows: 2\n")
    assert compose("evaluation=quick", config_dir=own).recipes[0].config.evaluation.windows == 1
    assert compose("evaluation=tiny", config_dir=own).recipes[0].config.evaluation.windows == 2
    assert compose("evaluation=none", config_dir=own).recipes[0].config.evaluation.enabled is False


def test_a_recipe_builds_on_others(folder: Path) -> None:
    write(folder / "recipes" / "base.yaml",
          "model: phi-4\ndevices: {mac: {mlx: [int4]}}\ngates: {kl: 0.5}\n")  # fmt: skip
    write(folder / "recipes" / "mine.yaml",
          "defaults: [base, iot, _self_]\ndevices: {mac: {mlx: [int8]}}\n")  # fmt: skip
    recipe = compose("recipe=mine").recipes[0]
    assert recipe.config.model == ModelChoice(path="phi-4")
    assert recipe.config.devices["mac"] == {"mlx": {"int8": {}}}  # its own word is the last
    assert "raspberry_pi_5" in recipe.config.devices  # from a shipped one
    assert [file.path.stem for file in recipe.files][:3] == ["mine", "base", "iot"]
    assert recipe.where(("devices", "raspberry_pi_5")).endswith("iot.yaml:5")  # type: ignore[union-attr]


def test_the_shipped_shelf_is_all_the_recipes() -> None:
    parts = [compose(f"recipe={name}").recipes[0].config.devices
             for name in ("mobile", "iot", "ai_pc", "copilot_pc", "apple", "server")]  # fmt: skip
    whole = compose("recipe=edge_release").recipes[0].config.devices
    assert set(whole) == {device for part in parts for device in part}


def test_all_mistakes_at_once() -> None:
    found = problems("recipe=qickstart", "precision=int4,int8", "x=1,2", "hydra.run.dir=x")
    assert len(found) == 4
    assert "did you mean 'quickstart'?" in "\n".join(found)


@pytest.mark.parametrize("word", ["=", "a b", "precision=", "x=[1", "~"])
def test_what_is_no_override(word: str) -> None:
    assert f"command line: {word}" in "\n".join(problems(word))


def test_cfg_is_yaml_that_says_everything() -> None:
    text = compose("recipe=mobile,iot", "precision=int4,int8", "gates.kl=0.5", sweep=True).yaml()
    one, two = (dict[str, Any](data) for data in yaml.safe_load_all(text))
    assert (one["recipe"], two["recipe"]) == ("mobile", "iot")
    assert one["precision"] == two["precision"] == ["int4", "int8"]
    assert one["gates"]["kl"] == 0.5
    assert one["evaluation"]["windows"] == 20
    assert two["devices"]["raspberry_pi_5"]["ort_genai"] == {"int4": {}}
    assert "${" not in text


def test_references_inside_a_recipe_are_resolved(folder: Path) -> None:
    write(folder / "recipes" / "mine.yaml",
          "model: phi-4\ndescription: for ${model}\ndevices: {mac: {mlx: [int4]}}\n")  # fmt: skip
    assert compose("recipe=mine").recipes[0].config.description == "for phi-4"
