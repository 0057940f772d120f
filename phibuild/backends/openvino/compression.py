"""What nncf 3.4 notes in a model that it has compressed.

Tools read from it how the weights were made; `encode.py` makes those of the same call.
"""

from __future__ import annotations

import openvino as ov

from phibuild.worker.requests import Options

_VERSION = "3.4.0"
# AdvancedCompressionParameters of nncf 3.4, all defaults.
_ADVANCED = (
    "{'statistics_path': None, 'lora_adapter_rank': 256, 'group_size_fallback_mode': 'error', "
    "'min_adjusted_group_size': 32, 'awq_params': {'subset_size': 32, 'percent_to_apply': 0.002, "
    "'alpha_min': 0.0, 'alpha_max': 1.0, 'steps': 100, 'prefer_data_aware_scaling': True}, "
    "'scale_estimation_params': {'subset_size': 64, 'initial_steps': 5, 'scale_steps': 5, "
    "'weight_penalty': -1.0}, 'gptq_params': {'damp_percent': 0.1, 'block_size': 128, "
    "'subset_size': 128}, 'lora_correction_params': {'adapter_rank': 8, 'num_iterations': 3, "
    "'apply_regularization': True, 'subset_size': 128, 'use_int8_adapters': True}, "
    "'backend_params': {}, 'codebook': None, 'adaptive_codebook_params': {'value_type': 'f8e4m3', "
    "'across_blocks': False, 'num_elements': 16}}"
)


def note_compression(model: ov.Model, options: Options) -> None:
    """Set the runtime information of `nncf.compress_weights` with a variant's options."""
    noted = {
        "advanced_parameters": _ADVANCED,
        "all_layers": False,
        "awq": False,
        "backup_mode": "int8_asym",
        "compression_format": "dequantize",
        "gptq": False,
        "group_size": options.get("group_size", -1),
        "ignored_scope": [],
        "lora_correction": False,
        "mode": options["mode"],
        "ratio": 1.0 if options["mode"].startswith("int4") else 1,
        "scale_estimation": False,
        "sensitivity_metric": "weight_quantization_error",
    }
    for key, value in noted.items():
        model.set_rt_info(str(value), ["nncf", "weight_compression", key])
    model.set_rt_info(_VERSION, ["nncf", "version"])
    model.set_rt_info("True", ["nncf", "friendly_names_were_updated"])
