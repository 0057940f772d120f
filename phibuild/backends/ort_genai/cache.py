"""An int8 KV cache: the scales that onnxruntime-genai's builder puts into the graph."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from phibuild.worker.requests import CACHE_RANGES

_STEPS = 128  # between zero and the largest magnitude: KV_CACHE_CALIBRATION_QMAX of the builder
_LEAST = 1e-6  # a channel that is zero throughout has a scale, too


def cache_options(cache_ranges: Path, scratch: Path) -> list[str]:
    """Return the builder's KEY=VALUE options for a cache of int8 with a scale for each channel, by
    the largest keys and values in a folder of the original's activations; the file of scales that
    they name is written into `scratch`."""
    ranges = np.load(cache_ranges / CACHE_RANGES)  # [2, layers, KV heads, head_dim]
    keys, values = (np.maximum(ranges, _LEAST) / _STEPS).reshape(*ranges.shape[:2], -1)
    file = scratch / "scales.json"
    scales = {"k_scales": keys.tolist(), "v_scales": values.tolist()}
    file.write_text(json.dumps({"scales": scales, "qmax": _STEPS}), encoding="utf-8")
    return ["kv_cache_quant_scheme=int8_per_channel", f"kv_cache_scale_file={file}"]
