"""An artifact's config.json."""

from __future__ import annotations

from phibuild.backends.pytorch.config_groups import quantization_config
from phibuild.backends.pytorch.layout import Scheme
from phibuild.worker.architecture import Architecture
from phibuild.worker.json_values import JsonDict


def artifact_config(config: JsonDict, arch: Architecture, scheme: Scheme) -> JsonDict:
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
    if quantized := quantization_config(arch, scheme):
        config["quantization_config"] = quantized
    return config
