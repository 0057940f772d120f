"""config.json of an MLX artifact, as mlx-lm reads it. Standard library only."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from phibuild.backends.mlx.layout import (
    MlxQuantization,
    matrix_quantization,
    module_order,
    quantization,
)
from phibuild.worker.architecture import Architecture
from phibuild.worker.json_values import JsonDict, JsonObject
from phibuild.worker.requests import Options

# What mlx-lm's ModelArgs (models/phi3.py) takes where config.json does not say.
_ASSUMED = {
    "rope_theta": 10000.0,
    "partial_rotary_factor": 1.0,
    "max_position_embeddings": 131072,
    "original_max_position_embeddings": 4096,
}
# Not for this artifact: the folder the checkpoint once came from, and the Python files beside the
# published checkpoints, which nobody needs and nothing here may run.
_DROPPED = ("_name_or_path", "auto_map")


def write_config(
    source: Path,
    output: Path,
    arch: Architecture,
    options: Options,
    ends: Sequence[int],
) -> None:
    """Write config.json of the artifact from that of the checkpoint.

    As `mlx_lm.convert` does: keys sorted, the ids that end generation (`ends`) among them,
    `quantization` twice, with that of each matrix where it has its own. Beyond it: the float type
    is the artifact's own (a second conversion would cast to what config.json says), and rope
    stands where mlx-lm looks for it even if Transformers 5 wrote the checkpoint (mlx-lm would
    ignore `rope_parameters` and load a model without longrope).
    """
    config: JsonDict = json.loads((source / "config.json").read_text(encoding="utf-8"))
    for key in _DROPPED:
        config.pop(key, None)
    if ends:
        single = len(ends) == 1 and not isinstance(config.get("eos_token_id"), list)
        config["eos_token_id"] = ends[0] if single else list(ends)
    config["torch_dtype"] = options["dtype"]
    if "dtype" in config:
        config["dtype"] = options["dtype"]
    config.update(_rope_for_mlx_lm(config, arch))
    quantized = quantization(options)
    if quantized is not None:
        parameters = _parameters(quantized)
        if "recipe" in options or "tensor_types" in options:
            for name, shape in module_order(arch):
                own = matrix_quantization(name, arch.layers, options)
                if own is not None and len(shape) == 2:
                    parameters[name.removesuffix(".weight")] = _parameters(own)
        config["quantization"] = config["quantization_config"] = parameters
    text = json.dumps(dict(sorted(config.items())), indent=4)
    (output / "config.json").write_text(text, encoding="utf-8")


def _parameters(quantized: MlxQuantization) -> JsonDict:
    return {
        "group_size": quantized.group_size,
        "bits": quantized.bits,
        "mode": quantized.mode,
    }


def _rope_for_mlx_lm(config: JsonObject, arch: Architecture) -> JsonDict:
    """Return the keys that must be set so that mlx-lm gets the architecture's rope."""
    missing: JsonDict = {}
    meant = {
        "rope_theta": arch.rope.theta,
        "partial_rotary_factor": arch.rope.partial,
        "max_position_embeddings": arch.max_positions,
    }
    if arch.rope.is_longrope:
        meant["original_max_position_embeddings"] = arch.original_max_positions
        scaling = config.get("rope_scaling") or {}
        if not {"type", "long_factor", "short_factor"} <= scaling.keys():
            missing["rope_scaling"] = {
                "type": "longrope",
                "short_factor": list(arch.rope.short),
                "long_factor": list(arch.rope.long),
            }
    for key, value in meant.items():
        if config.get(key, _ASSUMED[key]) != value:
            missing[key] = value
    return missing
