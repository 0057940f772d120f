"""Weights that nncf calibrates, as OpenVINO IR; runs in the environment of optimum-intel.

`python calibrated_nncf.py SOURCE TOKENS OUTPUT [scale_estimation] [gptq]` exports the checkpoint by
optimum-intel in its own dtype and compresses it to int4, asymmetric, in groups of 64, as phibuild's
artifacts of OpenVINO are. TOKENS is an .npy of ids [chunks, tokens]; what is not named here is left
to nncf.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np


def main(source: str, tokens: str, output: str, *methods: str) -> None:
    import nncf
    import openvino as ov
    from optimum.exporters.openvino import main_export
    from optimum.intel import OVConfig

    exact = Path(output) / "exact"
    main_export(
        source,
        exact,
        task="text-generation-with-past",
        ov_config=OVConfig(dtype="auto"),
        stateful=True,
        library_name="transformers",
        convert_tokenizer=False,
    )
    model = nncf.compress_weights(
        ov.Core().read_model(exact / "openvino_model.xml"),
        mode=nncf.CompressWeightsMode.INT4_ASYM,
        group_size=64,
        ratio=1.0,
        dataset=nncf.Dataset(np.load(tokens), inputs) if methods else None,
        **dict.fromkeys(methods, True),
    )
    ov.save_model(model, Path(output) / "openvino_model.xml", compress_to_fp16=False)


def inputs(ids: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """Return a chunk of ids as what the exported graph takes."""
    return {
        "input_ids": ids[None].astype(np.int64),
        "attention_mask": np.ones((1, len(ids)), np.int64),
        "position_ids": np.arange(len(ids), dtype=np.int64)[None],
        "beam_idx": np.zeros(1, np.int32),
    }


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # sends nothing then
    main(*sys.argv[1:])
