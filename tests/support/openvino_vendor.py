"""Export checkpoints by optimum-intel; runs in the vendor's environment.

`python openvino_vendor.py` reads a JSON list of [SOURCE, OUTPUT, NAMES] from standard input: one
process for all checkpoints, because importing optimum-intel takes longer than an export. It writes
OUTPUT/<name>/openvino_model.xml for fp16 and fp32 (traces in a dtype) and for the names that are
in `COMPRESSED` (the trace in the checkpoint's own dtype, "source", with weights compressed).
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

# The dtype of optimum's OVConfig; auto keeps the checkpoint's.
EXPORTS = {"source": "auto", "fp16": "fp16", "fp32": "fp32"}
COMPRESSED: dict[str, dict[str, Any]] = {
    "int4-asym-g64": {"bits": 4, "sym": False, "group_size": 64, "ratio": 1.0},
    "int4-asym-g32": {"bits": 4, "sym": False, "group_size": 32, "ratio": 1.0},
    "int4-sym-g128": {"bits": 4, "sym": True, "group_size": 128, "ratio": 1.0},
    "int4-sym-cw": {"bits": 4, "sym": True, "group_size": -1, "ratio": 1.0},
    "int8-asym": {"bits": 8, "sym": False},
    "int8-sym": {"bits": 8, "sym": True},
}


def main() -> None:
    for source, output, names in json.load(sys.stdin):
        export(source, Path(output), names)


def export(source: str, output: Path, names: list[str]) -> None:
    from optimum.exporters.openvino import main_export
    from optimum.intel import OVConfig, OVModelForCausalLM, OVWeightQuantizationConfig

    compressed = [name for name in names if name in COMPRESSED]
    for name, dtype in EXPORTS.items():
        if name == "source" and not compressed:
            continue
        main_export(
            source,
            output / name,
            task="text-generation-with-past",
            ov_config=OVConfig(dtype=dtype),
            stateful=True,
            library_name="transformers",
            convert_tokenizer=False,
        )
    for name in compressed:
        model = OVModelForCausalLM.from_pretrained(
            output / "source",
            compile=False,
            quantization_config=OVWeightQuantizationConfig(**COMPRESSED[name]),
        )
        model.save_pretrained(output / name)


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # sends nothing then
    main()
