"""One variant of a checkpoint: graph, compression by nncf, files of the IR."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import openvino as ov

from phibuild.architecture import Architecture
from phibuild.backends.openvino.ir import build_model
from phibuild.backends.openvino.nodes import name_all
from phibuild.backends.openvino.weights import Stored, Weights

MODEL_XML = "openvino_model.xml"

# Activations on GPUs are fp16; the plugin divides them by this so that they stay in range
# (the value that optimum-intel sets for text generation).
_ACTIVATIONS_SCALE_FACTOR = "8.0"
_STORED: dict[str, Stored] = {"fp16": "f16", "fp32": "f32"}


def convert(source: Path, arch: Architecture, options: Mapping[str, Any], output: Path) -> None:
    """Write openvino_model.xml and .bin of the checkpoint `source` into `output`.

    `options` are those of a variant: `mode` (int4_asym, int4_sym, int8_asym, int8_sym, fp16 or
    fp32) and `group_size` for int4. Raises WorkerError if weights do not fit into fp16.
    """
    mode = options["mode"]
    with Weights(source, arch, _STORED.get(mode, "source"), scratch=output) as weights:
        model = build_model(arch, weights)
        model.set_rt_info(
            _ACTIVATIONS_SCALE_FACTOR, ["runtime_options", "ACTIVATIONS_SCALE_FACTOR"]
        )
        if mode in _STORED:
            model.set_rt_info("f16", ["runtime_options", "KV_CACHE_PRECISION"])
        else:
            model = _compress(model, mode, options.get("group_size"))
        name_all(model)
        ov.save_model(model, output / MODEL_XML, compress_to_fp16=False)


def _compress(model: ov.Model, mode: str, group_size: int | None) -> ov.Model:
    """Compress the matrices in place by the data-free algorithm of nncf.

    int4: all matrices but the embedding and the output layer, which get int8_asym (nncf's backup
    mode, as optimum-intel leaves it); a group size that does not divide a matrix is an error.
    int8: all matrices, a scale for each row.
    """
    import nncf  # imports scikit-learn and scipy: seconds that fp16 and fp32 do not need

    modes = nncf.CompressWeightsMode
    if mode.startswith("int8"):
        return nncf.compress_weights(model, mode=modes(mode))
    return nncf.compress_weights(
        model,
        mode=modes(mode),
        group_size=group_size,
        ratio=1.0,
        backup_mode=nncf.BackupMode.INT8_ASYM,
        advanced_parameters=nncf.AdvancedCompressionParameters(
            group_size_fallback_mode=nncf.GroupSizeFallbackMode.ERROR
        ),
    )
