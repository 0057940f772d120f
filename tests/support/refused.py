"""Quantized and wrapped checkpoints: the names of their tensors, and what phibuild says of each."""

from __future__ import annotations

from typing import Any

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
# name of a tensor; what wrapped it; remedy
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
