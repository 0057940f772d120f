"""Quantized and wrapped checkpoints are refused by the name of what made them."""

from __future__ import annotations

from typing import Any

import pytest

from phibuild.refused_formats import refused_format

MODULE = "model.layers.0.self_attn.o_proj"
PLAIN = [
    "model.embed_tokens.weight",
    "lm_head.weight",
    "model.norm.weight",
    *(
        f"model.layers.{layer}.{part}.weight"
        for layer in range(2)
        for part in (
            "input_layernorm", "post_attention_layernorm", "self_attn.qkv_proj", "mlp.down_proj",
            "self_attn.o_proj", "mlp.gate_up_proj",
        )
    ),
]  # fmt: skip
DUE = "the checkpoint is quantized already"
START = "start from the original weights"


def refuse(config: dict[str, Any], tensors: list[str]) -> str | None:
    found = refused_format(config, tensors, lambda key: f"config.json:{key}", "folder")
    return None if found is None else str(found)


def packed(*ends: str) -> list[str]:
    """Return a checkpoint's names, one module's weight in parts."""
    return [name for name in PLAIN if name != f"{MODULE}.weight"] + [MODULE + end for end in ends]


# quantization_config; the parts of a quantized module; name; how to dequantize
METHODS: dict[str, tuple[dict[str, Any], list[str], str, str]] = {
    "gptq": ({"quant_method": "gptq", "bits": 4}, [".qweight", ".qzeros", ".scales", ".g_idx"],
             " with GPTQ", "the tool that made it"),
    "awq": ({"quant_method": "awq", "bits": 4}, [".qweight", ".qzeros", ".scales"], " with AWQ",
            "the tool that made it"),
    "bitsandbytes-4bit": (
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        [".weight", ".weight.absmax", ".weight.quant_map", ".weight.nested_absmax",
         ".weight.quant_state.bitsandbytes__nf4"],
        " with bitsandbytes", "Transformers: model.dequantize(), then save_pretrained",
    ),
    "bitsandbytes-8bit": ({"load_in_8bit": True}, [".weight", ".SCB", ".weight_format"],
                          " with bitsandbytes",
                          "Transformers: model.dequantize(), then save_pretrained"),
    "compressed-tensors": ({"quant_method": "compressed-tensors", "format": "pack-quantized"},
                           [".weight_packed", ".weight_scale", ".weight_shape"],
                           " with compressed-tensors",
                           "Transformers: CompressedTensorsConfig(dequantize=True)"),
    "fp8": ({"quant_method": "fp8"}, [".weight", ".weight_scale_inv"], " with FP8",
            "Transformers: FineGrainedFP8Config(dequantize=True)"),
    "torchao": ({"quant_method": "torchao"}, [".weight_qdata"], " with torchao",
                "the tool that made it"),
    "hqq": ({"quant_method": "hqq"}, [".W_q", ".meta"], " with HQQ", "the tool that made it"),
    "aqlm": ({"quant_method": "aqlm"}, [".codes", ".codebooks", ".scales"], " with AQLM",
             "the tool that made it"),
    "eetq": ({"quant_method": "eetq"}, [".weight", ".weight_scales"], " with EETQ",
             "the tool that made it"),
    "quanto": ({"quant_method": "quanto"}, [".weight._data", ".weight._scale"], " with Quanto",
               "the tool that made it"),
    "mlx": ({"group_size": 64, "bits": 4}, [".weight", ".scales", ".biases"], " with MLX",
            "mlx_lm.convert --dequantize"),
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.case(
    "fine-tunes",
    "a checkpoint quantized already: {method}",
    "dequantized, or not loaded *",
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


WRAPPED = {
    "peft": ("base_model.model.{}", "PEFT", "call merge_and_unload() and save what it returns, or "
             "give the adapter's own folder"),
    "compile": ("_orig_mod.{}", "torch.compile",
                "save the model that was compiled (model._orig_mod)"),
    "compile-inside": ("model._orig_mod.{}", "torch.compile",
                       "save the model that was compiled (model._orig_mod)"),
    "ddp": ("module.{}", "DistributedDataParallel", "save the model inside (model.module)"),
    "fsdp": ("_fsdp_wrapped_module.{}", "FSDP",
             "gather the full state when saving (accelerate merge-weights)"),
    "checkpointing": ("model._checkpoint_wrapped_module.{}", "activation checkpointing",
                      "save the model without the wrapper"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRAPPED)
@pytest.mark.case(
    "fine-tunes",
    "saved from inside a wrapper: {case}",
    "random weights *",
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
