"""What llm-compressor's oneshot does for round to nearest, with the libraries that it is made of.

    python compressed_tensors_export.py < JSON     (in the pytorch toolchain)

Standard input is a list of [checkpoint, output folder, {"dtype", "preset", ...}]. A memoryless
min-max observer, then compressed-tensors' own compressor, in the order of llm-compressor's wrapped
save_pretrained. Without a preset the checkpoint is loaded and saved in `dtype` by Transformers.
With "groups", a list of {"preset", "targets", ...}, each has layers of its own; those in "ignore"
stay as they are.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from compressed_tensors import ModelCompressor
from compressed_tensors.quantization import (
    QuantizationConfig,
    QuantizationScheme,
    QuantizationStatus,
    apply_quantization_config,
    preset_name_to_scheme,
)
from compressed_tensors.quantization.utils import calculate_qparams
from transformers import AutoModelForCausalLM


def export(source: str, folder: str, choice: dict[str, Any]) -> None:
    """Write the checkpoint `source` to `folder` by the scheme of `choice`."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=choice.pop("dtype"))
    ignored = choice.pop("ignore", [])
    groups = choice.pop("groups", [choice] if "preset" in choice else [])
    if not groups:
        model.save_pretrained(folder)
        return
    schemes = {f"group_{number}": scheme_of(group) for number, group in enumerate(groups)}
    config = QuantizationConfig(config_groups=schemes, ignore=[*ignored, "lm_head"])
    apply_quantization_config(model, config)
    for module in model.modules():
        if getattr(module, "quantization_scheme", None) is None:
            continue
        args = module.quantization_scheme.weights
        size = args.group_size or module.weight.shape[1]  # a scale for each row
        observed = module.weight.data.unflatten(-1, (-1, size)).unsqueeze(0)
        scale, zero_point = calculate_qparams(
            torch.amin(observed, dim=(0, -1)), torch.amax(observed, dim=(0, -1)), args
        )
        module.weight_scale.data = scale
        if not args.symmetric:
            module.weight_zero_point.data = zero_point
        module.quantization_status = QuantizationStatus.FROZEN
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model, skip_compressed=True)
    model.save_pretrained(folder)
    compressor.update_config(folder)


def scheme_of(group: dict[str, Any]) -> QuantizationScheme:
    """Return the scheme of a preset, with changes of the weights' arguments."""
    scheme = preset_name_to_scheme(group.pop("preset"), group.pop("targets", ["Linear"]))
    for key, value in group.items():
        setattr(scheme.weights, key, value)
    return scheme


if __name__ == "__main__":
    for arguments in json.load(sys.stdin):
        export(*arguments)
