"""An artifact's config.json."""

from __future__ import annotations

from importlib.metadata import version

from phibuild.backends.pytorch.layout import GroupQuantization, Scheme
from phibuild.worker.json_values import JsonDict


def artifact_config(config: JsonDict, scheme: Scheme) -> JsonDict:
    """Return the artifact's config.json: the checkpoint's, with the variant's dtype and, if it is
    quantized, the `quantization_config` that llm-compressor writes for the same scheme."""
    # The code that auto_map names is not part of the artifact; Phi-3 is native everywhere.
    config = {key: value for key, value in config.items() if key != "auto_map"}
    # Transformers 5 writes `dtype`; older releases, and vLLM's, read `torch_dtype`.
    for key in ("dtype", "torch_dtype"):
        if key in config:
            config[key] = scheme.dtype
    if "dtype" not in config:
        config["torch_dtype"] = scheme.dtype
    if scheme.quantization is not None:
        config["quantization_config"] = quantization_config(scheme.quantization)
    return config


def quantization_config(quantization: GroupQuantization) -> JsonDict:
    """Return compressed-tensors' description of a weight-only scheme of all linear layers."""
    return {
        "config_groups": {
            "group_0": {
                "format": "pack-quantized",
                "input_activations": None,
                "output_activations": None,
                "targets": ["Linear"],
                "weights": {
                    "dynamic": False,
                    "group_size": quantization.group_size,
                    "num_bits": quantization.bits,
                    "strategy": "group",
                    "symmetric": quantization.symmetric,
                    "type": "int",
                },
            }
        },
        "format": "pack-quantized",
        "global_compression_ratio": None,
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "moe_sparsity_config": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "sparsity_config": {},
        "transform_config": {},
        "version": version("compressed-tensors"),
    }
