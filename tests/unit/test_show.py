"""`phibuild show`: whose a file is, what it hides, and every key with values, default, meaning."""

from __future__ import annotations

import json
from typing import Any

import pytest

from conftest import ROOT, CommandLine
from phibuild.backends.registry import SHIPPED, backend
from phibuild.schema import PRECISIONS, Device


def keys(phibuild: CommandLine, *words: str) -> dict[str, dict[str, Any]]:
    done = phibuild("show", *words, "--json")
    assert done.returncode == 0, done.stderr
    return {one["key"]: one for one in json.loads(done.stdout)["keys"]}


def test_a_device_of_ones_own_hides_the_shipped_one(phibuild: CommandLine) -> None:
    shipped = ROOT / "conf" / "device" / "raspberry_pi_5.yaml"
    done = phibuild("show", "device", "raspberry_pi_5")
    assert done.stdout.startswith(f"device raspberry_pi_5: {shipped} (ships with phibuild)\n\n")
    own = phibuild.folder / "conf" / "device"
    own.mkdir(parents=True)
    text = shipped.read_text(encoding="utf-8").replace("8 GiB", "4 GiB").replace("6 GB", "3 GB")
    (own / "raspberry_pi_5.yaml").write_text(text)
    done = phibuild("show", "device", "raspberry_pi_5")
    assert done.stdout.startswith(
        "device raspberry_pi_5: conf/device/raspberry_pi_5.yaml (your own)\n"
        f"  in place of {shipped} (ships with phibuild)\n\n{text}"
    )
    assert "memory: 4 GiB   (conf/device/raspberry_pi_5.yaml:4)\n" in done.stdout
    found = keys(phibuild, "device", "raspberry_pi_5")
    assert {key.split(".")[0] for key in found} == {
        field.alias or name for name, field in Device.model_fields.items() if name != "name"
    }
    assert found["class"]["values"] == "mobile, iot, ai_pc, copilot_pc or server"
    assert found["class"]["required"]
    assert not found["backends"]["required"]
    assert all(one["meaning"] for one in found.values())


@pytest.mark.parametrize("name", SHIPPED)
def test_a_backend_with_every_option_of_each_precision(name: str, phibuild: CommandLine) -> None:
    found = keys(phibuild, "backend", name)
    assert {key.split(".")[0] for key in found} <= set(PRECISIONS)
    every = {key.partition(".")[2] for key in found if "." in key}
    assert every == set(backend(name).options.model_fields)
    assert all(one["meaning"] and one["values"] for one in found.values())
    text = phibuild("show", "backend", name).stdout
    assert (ROOT / "conf" / "backend" / f"{name}.yaml").read_text(encoding="utf-8").rstrip() in text
    assert all(f"\n{option}:\n" in text for option in every)


def line_of(text: str) -> int:
    """Return the number of a line of llamacpp's conf file."""
    lines = (ROOT / "conf" / "backend" / "llamacpp.yaml").read_text(encoding="utf-8").splitlines()
    return lines.index(text) + 1


def test_a_backends_values_and_defaults(phibuild: CommandLine) -> None:
    found = keys(phibuild, "backend", "llamacpp")
    assert found["int8.type"]["values"] == "Q8_0 or null"
    assert found["int8.type"]["default"] == "Q8_0"
    place = f"conf/backend/llamacpp.yaml:{line_of('  type: Q8_0')}"
    assert found["int8.type"]["where"].endswith(place)
    assert found["int4.type"]["values"] == "Q4_K_M, Q4_0, Q5_K_M, IQ4_XS or null"
    assert found["int4.target_size"]["values"] == "a size such as 8 GiB or null"
    assert found["int4.imatrix_tokens"]["values"] == "a whole number (512 or more)"
    assert "int8.imatrix" not in found


def test_a_recipe_says_what_overrides_what(phibuild: CommandLine) -> None:
    recipes = phibuild.folder / "recipes"
    recipes.mkdir()
    (recipes / "mine.yaml").write_text(
        "defaults: [iot, _self_]\ndevices:\n  raspberry_pi_5:\n    llamacpp:\n"
        "      int4: {type: Q5_K_M}\nevaluation: {windows: 7}\n"
    )
    found = keys(phibuild, "recipe", "mine")
    kind = found["devices.raspberry_pi_5.llamacpp.int4.type"]
    assert (kind["value"], kind["where"]) == ("Q5_K_M", "recipes/mine.yaml:5")
    assert [(one["value"], one["where"].rsplit("/", 2)[-2:]) for one in kind["over"]] == [
        ("Q4_0", ["device", "raspberry_pi_5.yaml:14"]),
        (None, ["backend", f"llamacpp.yaml:{line_of('  type: null')}"]),
    ]
    windows = found["evaluation.windows"]
    assert (windows["value"], windows["default"], windows["where"]) == (
        7, 20, "recipes/mine.yaml:6",
    )  # fmt: skip
    lines = (ROOT / "recipes" / "iot.yaml").read_text(encoding="utf-8").splitlines()
    (line,) = (number for number, text in enumerate(lines, 1) if text.startswith("  kl:"))
    assert found["gates.kl"]["where"].endswith(f"recipes/iot.yaml:{line}")
    text = phibuild("show", "recipe", "mine").stdout
    assert f"  over {ROOT}/recipes/iot.yaml\n" in text
    assert "    type: Q5_K_M   (recipes/mine.yaml:5, over Q4_0 of " in text
    (recipes / "mine.yaml").write_text("devices: {macc: {mlx: [int4]}}\n")
    wrong = phibuild("show", "recipe", "mine")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "recipes/mine.yaml:1: unknown device 'macc'" in wrong.stderr


def test_a_model(phibuild: CommandLine) -> None:
    found = keys(phibuild, "model", "phi-4")
    assert found["repo"]["value"] == "microsoft/phi-4"
    assert found["tokenizer_bytes"]["default"] == 4_000_000
    assert found["config.hidden_size"]["where"].endswith("conf/model/phi-4.yaml:9")


def test_unknown_names(phibuild: CommandLine) -> None:
    for kind, near in (("device", "macc"), ("backend", "mlxx"), ("model", "phi-44")):
        done = phibuild("show", kind, near)
        assert (done.returncode, done.stdout) == (2, "")
        assert f"unknown {kind} {near!r}\n    did you mean '{near[:-1]}'?" in done.stderr
