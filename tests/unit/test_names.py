"""Names that Hydra or YAML would take for numbers, dates, true or null; names of any script."""

from __future__ import annotations

import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import CommandLine
from phibuild.config.catalogue import Catalogue
from phibuild.config.compose import Composition, compose_build
from phibuild.planning.matrix import Matrix, expand

TYPED = ("2024.10", "2024_10", "1.10", "1e5", "nan", "null", "true", "0x1F", "2024-10-01", "a b",
         "(x)", "a=b", "a,b", "~", "-1", "日本")  # fmt: skip
DEVICE = """\
title: My board
class: iot
memory: 8 GiB
budget: 6 GiB
accelerators: [cpu]
context_length: 4096
sources: {memory: x, budget: x, context_length: x}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    work = tmp_path / "names"
    for name in ("recipes", "conf/device", "conf/evaluation", "conf/executor"):
        (work / name).mkdir(parents=True)
    monkeypatch.chdir(work)
    return work


def compose(*words: str, sweep: bool = False) -> Composition:
    return compose_build(words, Catalogue(), sweep=sweep)


def cells(*words: str, sweep: bool = False) -> Matrix:
    return expand(compose(*words, sweep=sweep), Catalogue())


def write(path: str, text: str) -> None:
    Path(path).write_text(text, encoding="utf-8")


@pytest.mark.parametrize("name", TYPED)
@pytest.mark.case(
    "names",
    "recipes called 2024.10, 1.10, 1e5, nan, null",
    None,
    "text",
)
def test_a_name_is_a_name(name: str) -> None:
    """As recipe, in a defaults list, as device, evaluation and executor, as a key of overrides."""
    write(f"conf/device/{name}.yaml", DEVICE)
    write(f"conf/evaluation/{name}.yaml", "windows: 7\n")
    write(f"conf/executor/{name}.yaml", "timeout: 77\n")
    write(f"recipes/{name}.yaml", f"devices: {{'{name}': {{llamacpp: [int4, int8]}}}}\n")
    write("recipes/mine.yaml", f"defaults: ['{name}', _self_]\ngates: {{kl: 1}}\n")
    for recipe in (name, "mine"):
        found = compose(f"recipe={recipe}", f"evaluation={name}", f"executor={name}")
        assert found.name == recipe
        config = found.recipes[0].config
        assert config.devices == {name: {"llamacpp": {"int4": {}, "int8": {}}}}
        assert (config.evaluation.windows, config.executor.timeout) == (7, 77)
    matrix = cells("recipe=mine", f"device={name}", "precision=int4")
    assert [cell.id for cell in matrix.cells] == [f"phi3-tiny-trained.{name}.llamacpp.int4"]
    assert "\n    x: null" not in found.yaml()


@pytest.mark.parametrize("name", ["2024.10", "1e5", "8gb_board", "a b", "a.b.c", "Gerät", "1.50"])
def test_a_name_in_the_key_of_an_override(name: str) -> None:
    write(f"conf/device/{name}.yaml", DEVICE)
    write("recipes/mine.yaml", f"devices: {{'{name}': {{llamacpp: [int4, int8]}}}}\n")
    word = f"devices.{name}.llamacpp.int4.type=Q5_K_M"
    found = compose("recipe=mine", word, f"~devices.{name}.llamacpp.int8").recipes[0]
    assert found.config.devices == {name: {"llamacpp": {"int4": {"type": "Q5_K_M"}}}}
    path = ("devices", name, "llamacpp", "int4", "type")
    assert found.where(path) == f"command line: {word}"


@pytest.mark.case(
    "names",
    "sweeps and default lists of such names",
    None,
    "text",
)
def test_sweeps_of_such_names() -> None:
    for name in ("1.10", "1e5", "nan"):
        write(f"recipes/{name}.yaml", "devices: {mac: {mlx: [int4]}}\n")
    assert compose("recipe=1.10,1e5", sweep=True).name == "1.10+1e5"
    assert compose("recipe=choice(nan, 1.10)", sweep=True).name == "nan+1.10"
    assert compose("recipe=glob(1*)", sweep=True).name == "1.10+1e5"
    assert compose("recipe='1.10',\"nan\"", sweep=True).name == "1.10+nan"


@pytest.mark.parametrize("text", ["2024.10", "1e5", "true", "2024-10-01", "'null'", "0x1F"])
def test_a_model_of_a_recipe_is_text(text: str) -> None:
    written = text.strip("'")
    recipe = "devices: {mac: {mlx: [int4]}}\nmodel: "
    write("recipes/mine.yaml", recipe + text)
    assert compose("recipe=mine").recipes[0].config.model.path == written
    write("recipes/mine.yaml", f"{recipe}{{name: {text}, path: {text}}}")
    model = compose("recipe=mine").recipes[0].config.model
    assert (model.name, model.path) == (written, written)
    assert compose(f"model.name={written}").recipes[0].config.model.name == written


def test_accents_may_be_encoded_either_way() -> None:
    for form in ("NFC", "NFD"):
        name = unicodedata.normalize(form, "Gerät")
        write(f"recipes/{name}.yaml", "devices: {mac: {mlx: [int4]}}\n")
        for word in ("NFC", "NFD"):
            typed = unicodedata.normalize(word, "Gerät")
            assert compose(f"recipe={typed}").name == unicodedata.normalize("NFC", name)
        Path(f"recipes/{name}.yaml").unlink()


def test_a_file_of_a_group_has_no_defaults_list(phibuild: CommandLine, folder: Path) -> None:
    """Hydra would compose files that nobody has checked."""
    write("conf/evaluation/base.yaml", "text: ${oc.env:HOME}\n")
    write("conf/evaluation/mine.yaml", "windows: 3\ndefaults: [base]\n")
    done = phibuild("plan", "evaluation=mine", cwd=folder)
    assert done.returncode == 2
    assert "conf/evaluation/mine.yaml:2: a file of conf/evaluation has no defaults" in done.stderr


@pytest.mark.parametrize(
    "name",
    ["a=b", "my phi (2)", "Gerät", "фи", "o'brien", "a,b", "[old]", "日本", "1e5", "~x", "é@1"],
)
@pytest.mark.case(
    "names",
    "= or letters that are not ASCII in model=",
    None,
    "text",
)
def test_a_checkpoint_folder_of_any_name(
    name: str, checkpoint: Callable[..., Path], folder: Path
) -> None:
    """As it was typed, where a shell gives it whole; with -m, a comma needs the quotes that the
    error tells of."""
    shutil.copytree(checkpoint("phi3", layers=1), folder / name)
    write("recipes/mine.yaml", "devices: {raspberry_pi_5: {llamacpp: [int4]}}\n")
    matrix = cells("recipe=mine", f"model=./{name}")
    (found,) = matrix.models.values()
    assert found.folder == folder / name
    swept = cells("recipe=mine", f"model='./{name}',phi-4" if "'" not in name
                  else f"model=./{name},phi-4", sweep=True)  # fmt: skip
    assert [model.reference for model in swept.models.values()] == [f"./{name}", "phi-4"]
    letters = all(c.isalnum() for c in name)
    (cell,) = matrix.cells
    assert not letters or cell.id == f"{name}.raspberry_pi_5.llamacpp.int4"


def test_names_of_any_script_where_they_go(phibuild: CommandLine) -> None:
    """The plan, its JSON and globs, also on a terminal that has no such letters."""
    word = "model={name: Gerät-фи-日本-नी, path: phi3-tiny-trained}"
    pattern = unicodedata.normalize("NFD", "Gerät*.mac.mlx.int4")
    for name, value in (("PYTHONUTF8", "0"), ("PYTHONIOENCODING", "ascii"), ("LC_ALL", "C")):
        done = phibuild("plan", word, "--only", pattern, cwd=None, **{name: value})
        assert (done.returncode, done.stderr) == (0, "")
        assert "1 cells" in done.stdout
    assert "Gerät-фи-日本-नी.mac.mlx.int4" in phibuild("plan", word, "--wide").stdout
