"""The JSON Schemas of the files that people write, by the standard library for them: they are the
code's, take what phibuild takes and refuse what a schema can refuse."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator
from jsonschema.exceptions import ValidationError

from conftest import ROOT, CommandLine
from phibuild.backends.registry import SHIPPED, backend
from phibuild.cli import run_command
from phibuild.commands.schema import file_schema_texts
from phibuild.schema import PRECISIONS
from unit.test_bad_input import CONF_CASES, DEVICE, DEVICE_CASES, OK, RECIPE_CASES

FOLDER = ROOT / "conf" / "schema"
SHIPPED_FILES = sorted([*(ROOT / "conf").glob("*/*.yaml"), *(ROOT / "recipes").glob("*.yaml")])
LINE = re.compile(r"# yaml-language-server: \$schema=(\S+)")


@cache
def validator(name: str) -> Draft7Validator:
    schema = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    Draft7Validator.check_schema(schema)
    return Draft7Validator(schema)


def definitions() -> dict[str, Any]:
    """Return the parts of the schema of recipes."""
    parts: dict[str, Any] = json.loads((FOLDER / "recipe.json").read_text(encoding="utf-8"))
    return dict(parts["$defs"])


def problems(name: str, text: str | bytes) -> list[ValidationError]:
    return list(validator(name).iter_errors(yaml.safe_load(text)))


def test_the_files_are_the_codes() -> None:
    texts = file_schema_texts(FOLDER)
    assert {path.stem for path in FOLDER.iterdir()} == set(texts)
    for name, text in texts.items():
        assert (FOLDER / f"{name}.json").read_text(encoding="utf-8") == text, (
            f"conf/schema/{name}.json is not what the code says; "
            "'phibuild schema --files --write conf/schema' makes it anew"
        )


@pytest.mark.parametrize("path", SHIPPED_FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_shipped_file_names_its_schema_and_is_taken(path: Path) -> None:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    found = LINE.fullmatch(first)
    assert found, f"{path}:1: names no schema"
    schema = path.parent / found[1]
    assert schema.resolve().parent == FOLDER
    # In a wheel conf/ and recipes/ lie side by side as they do here: pyproject.toml.
    assert not found[1].startswith("../..")
    assert problems(schema.stem, path.read_bytes()) == []
    of = {"recipes": "recipe", "backend": f"backend-{path.stem}"}
    assert schema.stem == of.get(path.parent.name, path.parent.name)


def test_the_wheel_holds_conf_and_recipes_side_by_side() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert '"conf" = "phibuild/conf"\n"recipes" = "phibuild/recipes"' in text


UNREADABLE = {
    "syntax-brace", "syntax-colons", "syntax-tab", "two-documents", "alias-unknown", "not-utf8",
    "control-character", "key-list", "python-tag", "own-tag", "syntax",
}  # fmt: skip
"""No YAML, or no data: an editor's YAML parser refuses them."""
OF_OTHER_FILES = {
    "device", "device-nothing-near", "model", "model-folder", "model-path-nowhere", "model-builtin",
    "model-adapter-nowhere", "option-file", "option-folder", "text", "defaults-unknown",
    "defaults-path", "defaults-itself", "defaults-twice-below", "defaults-typed",
    # It may be a part of others.
    "no-devices",
    # The chosen file of conf/executor decides.
    "kind",
    # A run.
    "baseline-nowhere",
}  # fmt: skip
"""Whether they are right depends on what other files there are."""
BEYOND_A_SCHEMA = {
    "kl-nan",  # JSON has none
    "duplicate-key-nested", "key-true",  # lost when YAML becomes data
    "interpolation-unknown", "interpolation-cycle",
    "budget-beyond-memory", "baseline-missing", "baseline-unused",  # two keys compared
}  # fmt: skip
REFUSED_BY_PHIBUILD_ALONE = OF_OTHER_FILES | BEYOND_A_SCHEMA


def check_case(schema: str, case: str, text: str | bytes) -> None:
    if case in UNREADABLE:
        with pytest.raises((yaml.YAMLError, UnicodeDecodeError)):
            yaml.safe_load(text)
        return
    taken = problems(schema, text) == []
    assert taken == (case in REFUSED_BY_PHIBUILD_ALONE), f"{case}: taken={taken}"


@pytest.mark.parametrize("case", RECIPE_CASES)
def test_a_bad_recipe_is_refused(case: str) -> None:
    check_case("recipe", case, RECIPE_CASES[case][0])


@pytest.mark.parametrize("case", DEVICE_CASES)
def test_a_bad_device_is_refused(case: str) -> None:
    check_case("device", case, DEVICE_CASES[case][0])


@pytest.mark.parametrize("case", CONF_CASES)
def test_a_bad_configuration_file_is_refused(case: str) -> None:
    name, text, *_ = CONF_CASES[case]
    group, file = name.removesuffix(".yaml").split("/")
    check_case(f"backend-{file}" if group == "backend" else group, case, text)


def test_no_exception_is_made_for_a_case_that_is_gone() -> None:
    cases = {*RECIPE_CASES, *DEVICE_CASES, *CONF_CASES}
    assert (UNREADABLE | REFUSED_BY_PHIBUILD_ALONE) - cases == set()


# What phibuild takes, besides the shipped files: the schema takes it too.
GOOD_RECIPES = {
    "minimal": OK,
    "null-options": "devices: {mac: {mlx: {int4: , int8: }}}\n",
    "variants": "devices: {mac: {mlx: {int4: [{}, {bits: 5}, null]}}}\n",
    "own-device": "devices: {our-board.v2: {llamacpp: [int4]}}\n",
    "model-number": OK + "model: 2024.10\n",
    "model-mapping": OK + "model: {name: kiosk, path: ./checkpoint-500}\n",
    "model-adapter": OK + "model: {base: phi-4-mini, adapter: ./lora}\n",
    "best": "devices: {mac: {mlx: {int4: {quality: best}}}}\n",
    "gptq": "devices: {mac: {mlx: {int4: {method: gptq, tokens: 1024}}}}\n",
    "types": "devices: {mac: {mlx: {int4: {tensor_types: {'layers\\.0': q6}}}}}\n",
    "target": "devices: {raspberry_pi_5: {llamacpp: {int4: {target_size: 2.1 GB, type: null}}}}\n",
    "cache": "devices: {ai_pc_intel: {ort_genai: {fp32: {kv_cache: int8, text: embedded}}}}\n",
    "list-option": "devices: {ai_pc_intel: {ort_genai: {int4: {int8_matmuls: [last_matmul]}}}}\n",
    "gates": OK + "gates: {kl: {int4: 0.1, int4.Q4_K_M: 0.05}, size: 3 GB, fits_budget: true}\n",
    "gates-size-number": OK + "gates: {size: 3000000000, top1: 0.9}\n",
    "evaluation": OK + "evaluation: {windows: 4, max_reference_bytes: 1 GiB, text: null}\n",
    "executor": OK + "executor: {cores: 2, memory: 12 GiB, timeout: 60}\n",
    "backends": OK + "backends: {llamacpp: {int4: {type: Q5_K_M}}}\n",
    "interpolation": OK + "description: on ${model}\nevaluation: {windows: '${executor.cores}'}\n",
    "interpolated-option": "devices: {raspberry_pi_5: {llamacpp: {int4: {type: '${description}'}}}}"
    "\ndescription: Q4_0\n",
    "dollar": OK + "description: costs $5\n",
    "defaults": "defaults: [iot, _self_]\n",
}  # fmt: skip


@pytest.mark.parametrize("case", GOOD_RECIPES)
def test_what_phibuild_takes_is_taken(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = GOOD_RECIPES[case]
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.yaml").write_text(text)
    (tmp_path / "conf" / "device").mkdir(parents=True)
    (tmp_path / "conf" / "device" / "our-board.v2.yaml").write_text(DEVICE)
    monkeypatch.chdir(tmp_path)
    words = ["executor.cores=3"] if "interpolation" in case else []
    assert run_command(["plan", "recipe=mine", "--cfg", "job", *words]) == 0
    assert problems("recipe", text) == []


def test_the_documentations_recipes_are_taken() -> None:
    blocks = [
        block
        for page in ("README.md", "docs/recipes.md", "docs/editing.md")
        for block in re.findall(
            r"^```yaml\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"), re.M | re.S
        )
        if "devices:" in block
    ]
    assert len(blocks) >= 3
    for block in blocks:
        assert problems("recipe", block) == [], block


def test_a_precision_has_its_own_values() -> None:
    """As the backends' own documentation in conf/backend has them."""
    parts = definitions()

    def values(name: str, option: str) -> object:
        found = parts[name]["properties"].get(option)
        return found and [value for branch in found["anyOf"] for value in branch.get("enum", ())]

    assert values("llamacpp.int4", "type") == ["Q4_K_M", "Q4_0", "Q5_K_M", "IQ4_XS"]
    assert values("llamacpp.int8", "type") == ["Q8_0"]
    assert values("openvino.int8", "mode") == ["int8_asym", "int8_sym"]
    assert values("mlx.int4", "bits") == [3, 4, 5]
    assert values("mlx.int8", "bits") == [6, 8]
    assert "block_size" not in parts["ort_genai.fp16"]["properties"]
    assert parts["mlx.int8"]["properties"]["recipe"]["type"] == "null"
    # The text of an int8 artifact has a use where its KV cache is calibrated, and no other.
    assert "doNotSuggest" not in parts["ort_genai.int8"]["properties"]["text"]
    assert "doNotSuggest" in parts["openvino.int8"]["properties"]["text"]


@pytest.mark.parametrize("name", SHIPPED)
def test_defaults_are_those_of_the_conf_file(name: str) -> None:
    conf = yaml.safe_load((ROOT / "conf" / "backend" / f"{name}.yaml").read_bytes())
    parts = definitions()
    for precision in PRECISIONS:
        properties = parts[f"{name}.{precision}"]["properties"]
        for option, value in conf[precision].items():
            assert properties[option]["default"] == value
        assert properties.keys() <= backend(name).options.model_fields.keys()


def test_every_key_says_what_it_is() -> None:
    """Of all keys that an editor suggests."""
    for path in FOLDER.iterdir():
        schema = json.loads(path.read_text(encoding="utf-8"))
        lacking = [
            f"{part}: {key}"
            for part, found in {"": schema, **schema.get("$defs", {})}.items()
            for key, value in found.get("properties", {}).items()
            if "description" not in value
            and "$ref" not in str(value)
            and not value.get("doNotSuggest")
            and part != "device"
        ]
        assert lacking == [], path.name


def test_the_command_line(phibuild: CommandLine) -> None:
    listed = phibuild("schema", "--files")
    names = {line.split()[0] for line in listed.stdout.splitlines()[2:]}
    assert {"recipe", "device", "model", "evaluation", "executor", "backend-mlx"} <= names
    assert "report" not in names
    assert phibuild("schema", "--files", "--write", "own").returncode == 0
    assert {path.stem for path in (phibuild.folder / "own").iterdir()} == names
    device = phibuild.folder / "conf" / "device"
    device.mkdir(parents=True)
    (device / "our_kiosk.yaml").write_text(DEVICE)
    own = json.loads(phibuild("schema", "recipe").stdout)
    assert "our_kiosk" in own["properties"]["devices"]["properties"]
    shipped = json.loads((FOLDER / "recipe.json").read_text(encoding="utf-8"))
    assert "our_kiosk" not in shipped["properties"]["devices"]["properties"]
