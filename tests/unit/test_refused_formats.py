"""Quantized and wrapped checkpoints are refused by the name of what made them."""

from __future__ import annotations

from typing import Any

import pytest

from phibuild.checkpoints.refused_formats import refused_format
from support.refused import METHODS, MODULE, PLAIN, WRAPPED, packed

DUE = "the checkpoint is quantized already"
START = "start from the original weights"


def refuse(config: dict[str, Any], tensors: list[str]) -> str | None:
    found = refused_format(config, tensors, lambda key: f"config.json:{key}", "folder")
    return None if found is None else str(found)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.case(
    "fine-tunes",
    "a checkpoint quantized already: {method}",
    None,
    "refused by name, with how to dequantize it",
)
def test_quantized_checkpoints_are_refused_by_name(method: str) -> None:
    config, parts, name, tool = METHODS[method]
    found = refuse({"quantization_config": config}, packed(*parts))
    assert found is not None
    assert found.startswith(f"config.json:quantization_config: {DUE}{name}\n    {START}")
    assert found.endswith(f", or dequantize it with {tool}")
    assert "remove quantization_config" not in found


@pytest.mark.parametrize("method", METHODS)
def test_tensors_tell_what_config_json_does_not(method: str) -> None:
    _, parts, name, tool = METHODS[method]
    found = refuse({}, packed(*parts))
    assert found is not None
    assert found.startswith(f"folder: {DUE}{name} (")
    assert MODULE in found
    assert found.endswith(f", or dequantize it with {tool}")


@pytest.mark.parametrize("method", ["quark", "auto-round", "vptq", "spqr", "higgs", "new_one"])
def test_what_only_config_json_tells(method: str) -> None:
    names = {"quark": "AMD Quark", "auto-round": "AutoRound", "vptq": "VPTQ", "spqr": "SpQR",
             "higgs": "HIGGS"}  # fmt: skip
    found = refuse({"quantization_config": {"quant_method": method}}, [])
    place = "config.json:quantization_config"
    assert found == (
        f"{place}: {DUE} with {names.get(method, method)}\n"
        f"    {START}, or dequantize it with the tool that made it"
    )


def test_a_method_without_a_name_and_marks_without_a_method() -> None:
    assert (refuse({"quantization_config": {"bits": 4}}, []) or "").startswith(
        f"config.json:quantization_config: {DUE}\n    {START}, or dequantize"
    )
    found = refuse({}, packed(".weight", ".weight_scale"))
    assert found is not None
    assert found.startswith(f"folder: {DUE} ({MODULE}.weight_scale)\n    {START}, or dequantize")


def test_mlx_says_it_in_a_key_of_its_own() -> None:
    found = refuse({"quantization": {"bits": 4}}, packed(".weight", ".scales", ".biases"))
    assert (found or "").startswith(f"config.json:quantization: {DUE} with MLX\n")


def test_an_adapter_s_base_is_the_original() -> None:
    """QLoRA names the 4-bit checkpoint that it was trained on."""
    found = refuse({"quantization_config": {"quant_method": "bitsandbytes"}}, [])
    assert "an adapter that was trained on it too: model: {base: ..., adapter: ...}" in str(found)


def test_a_key_left_behind_by_training_can_be_removed() -> None:
    found = refuse({"quantization_config": {"quant_method": "bitsandbytes"}}, PLAIN)
    assert str(found).endswith(
        "; if the weights are plain (merged after training), remove quantization_config"
    )


@pytest.mark.parametrize("empty", [None, {}, False])
def test_plain_checkpoints_are_not_refused(empty: object) -> None:
    assert refuse({"quantization_config": empty}, PLAIN) is None
    assert refuse({}, PLAIN) is None
    assert refuse({}, [*PLAIN, "model.layers.0.self_attn.rotary_emb.inv_freq"]) is None


@pytest.mark.parametrize("case", WRAPPED)
@pytest.mark.case(
    "fine-tunes",
    "saved from inside a wrapper: {case}",
    None,
    "refused by name, with the remedy",
)
def test_wrapped_checkpoints_are_refused_by_name(case: str) -> None:
    name, wrapper, remedy = WRAPPED[case]
    found = refuse({}, [name.format(tensor) for tensor in PLAIN])
    assert found is not None
    assert found.startswith(f"folder: saved from inside {wrapper}: ")
    assert found.endswith(f" more\n    {remedy}")


def test_lora_beside_the_weights_is_a_model_that_was_not_merged() -> None:
    names = [*PLAIN, f"{MODULE}.lora_A.default.weight", f"{MODULE}.base_layer.weight"]
    found = refuse({}, names)
    assert (found or "").startswith(f"folder: saved from inside PEFT: {MODULE}.lora_A.default")
