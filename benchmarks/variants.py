"""Every variant and method of int4 and int8: what it loses, weighs and costs.

    python benchmarks/variants.py [--write docs/variants.md] [--model MODEL]

Builds and judges all of them in one run, of the embedded model, in a temporary folder, and prints
the table that docs/variants.md holds. Toolchains must be installed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from phibuild import __version__

DEVICE = """\
title: a device for {number}
class: ai_pc
memory: 64 GiB
budget: 64 GiB
accelerators: [cpu, metal, cuda, webgpu, openvino_gpu, openvino_npu{npu}]
context_length: 4096
sources: {{memory: assumed, budget: assumed, context_length: assumed}}
"""
NPU = {"qnn": ", hexagon_npu"}
"""Beside it llamacpp has other defaults."""
GPTQ = {"method": "gptq"}
Variants = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]
"""Options by backend and precision."""
VARIANTS: Variants = {
    "llamacpp": {
        "int4": [
            {"type": "Q4_0"}, {"type": "Q4_0", "imatrix": "embedded"}, {"type": "Q4_0", **GPTQ},
            {"type": "IQ4_XS"}, {"type": "IQ4_XS", "imatrix": "embedded"},
            {"type": "Q4_K_M"}, {"type": "Q4_K_M", "imatrix": "embedded"},
            {"type": "Q4_K_M", **GPTQ},
            {"type": "Q5_K_M"}, {"type": "Q5_K_M", "imatrix": "embedded"},
            {"type": "Q5_K_M", **GPTQ},
        ],
        "int8": [{}],
    },
    "ort_genai": {
        "int4": [
            {"provider": "cpu"}, {"provider": "cpu", **GPTQ},
            {"provider": "cpu", "symmetric": False},
            {"provider": "cpu", "symmetric": False, **GPTQ},
            {"provider": "cpu", "block_size": 128}, {"provider": "cpu", "block_size": 128, **GPTQ},
            {"provider": "cpu", "algorithm": "k_quant"},
            {"provider": "cpu", "int8_matmuls": ["last_matmul", "mixed_layers"]},
            {"provider": "cpu", "int8_matmuls": ["last_matmul", "mixed_layers"], **GPTQ},
        ],
        "int8": [{"provider": "cpu"}],
    },
    "openvino": {
        "int4": [
            {}, GPTQ, {"group_size": 32}, {"group_size": 32, **GPTQ},
            {"mode": "int4_sym"}, {"mode": "int4_sym", **GPTQ},
        ],
        "int8": [{}],
    },
    "mlx": {
        "int4": [
            {}, GPTQ, {"group_size": 32}, {"group_size": 32, **GPTQ}, {"bits": 3},
            {"bits": 3, **GPTQ}, {"bits": 5}, {"bits": 5, **GPTQ}, {"mode": "mxfp4"},
            {"recipe": "mixed_4_6"},
        ],
        "int8": [{}],
    },
    "coreai": {
        "int4": [{}, GPTQ, {"group_size": 16}, {"group_size": 128}, {"group_size": 128, **GPTQ}],
        "int8": [{}],
    },
    "litert": {
        "int4": [
            {}, GPTQ, {"group_size": 64}, {"group_size": 128}, {"group_size": 128, **GPTQ},
            {"tensor_types": {"embed_tokens|lm_head": "INT8"}},
        ],
        "int8": [{}],
    },
    "executorch": {
        "int4": [
            {}, GPTQ, {"group_size": 64}, {"group_size": 128}, {"group_size": 128, **GPTQ},
            {"group_size": 128, "tensor_types": {"down_proj": "INT8"}},
        ],
        "int8": [{}],
    },
    "qnn": {
        "int4": [
            {"soc": "sc8380xp"}, {"soc": "sc8380xp", **GPTQ}, {"form": "onnx"},
            {"form": "onnx", **GPTQ},
            {"form": "onnx", "group_size": 64}, {"form": "onnx", "group_size": 128},
            {"form": "onnx", "group_size": 128, **GPTQ},
        ],
        "int8": [{"soc": "sc8380xp"}],
    },
    "pytorch": {
        "int4": [
            {}, GPTQ, {"group_size": 32}, {"group_size": 32, **GPTQ}, {"symmetric": False},
            {"symmetric": False, **GPTQ},
        ],
        "int8": [{}, {"scheme": "W8A8"}, {"scheme": "FP8_DYNAMIC"}],
    },
}  # fmt: skip
HEADERS = ("backend", "precision", "variant", "MB", "bits/w", "KL", "top-1", "perplexity",
           "decode t/s", "build CPU s")  # fmt: skip
FOOT = (
    "\nKL from the fp32 original over the held-out text, in nats, with its standard error over "
    "windows; perplexity as the change from the original's, paired by window. Decode: tokens per "
    "second on this machine. Build CPU: the artifact's own and its share of what is common; what a "
    "calibration takes is the step's, below. MLX is judged against the original with long rope "
    "factors (docs/judging.md).\n"
)


def write_recipe(folder: Path, variants: Variants) -> None:
    """Write one device to each variant, and the recipe `variants` of all, as a `--config-dir`."""
    (folder / "device").mkdir(parents=True)
    (folder / "recipes").mkdir()
    devices: dict[str, Any] = {}
    for backend, precisions in variants.items():
        for precision, some in precisions.items():
            for options in some:
                name = f"device_{len(devices):02}"
                path = folder / "device" / f"{name}.yaml"
                path.write_text(
                    DEVICE.format(number=len(devices), npu=NPU.get(backend, "")), encoding="utf-8"
                )
                devices[name] = {backend: {precision: options}}
    recipe = json.dumps({"description": "all variants", "devices": devices})
    (folder / "recipes" / "variants.yaml").write_text(recipe, encoding="utf-8")


def row(cell: dict[str, Any]) -> list[str]:
    quality, speed = cell["quality"], cell["speed"]
    change, error = quality["perplexity_change"], quality["perplexity_change_error"]
    return [
        cell["backend"],
        cell["precision"],
        cell["variant"],
        f"{cell['size_bytes'] / 1e6:.2f}",
        f"{cell['bits_per_weight']:.2f}",
        f"{quality['kl_mean']:.4f} ± {quality['kl_error']:.4f}",
        f"{quality['top1']:.3f}",
        f"{change:+.2%} ± {error:.2%}",
        f"{speed['decode_tokens_per_second']:,.0f}",
        f"{cell['build_seconds']:.2f}",
    ]


def kept_rows(path: Path | None, measured: Variants) -> list[list[str]]:
    """Return the rows of a file's table whose backends are not measured anew."""
    if path is None or not path.is_file():
        return []
    lines = path.read_text("utf-8").splitlines()
    rows = [[one.strip() for one in line.strip("|").split("|")] for line in lines]
    return [row for row in rows if row[0] in VARIANTS and row[0] not in measured]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write", type=Path)
    parser.add_argument("--model", default="phi3-tiny-trained")
    parser.add_argument(
        "--backends", nargs="+", choices=VARIANTS, help="these alone; the file's other rows stay"
    )
    arguments = parser.parse_args()
    chosen = {name: VARIANTS[name] for name in arguments.backends or VARIANTS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_recipe(folder / "config", chosen)
        words = ["build", "recipe=variants", f"model={arguments.model}", "evaluation=standard"]
        words += ["evaluation.adaptive=false", "--config-dir", "config"]
        environ = {**os.environ, "PHIBUILD_STORE": str(folder / "store")}
        done = subprocess.run(
            [sys.executable, "-m", "phibuild", *words], cwd=folder, env=environ, check=False
        )
        latest = folder / "outputs" / "variants" / "latest"
        report = json.loads((latest / "report.json").read_text("utf-8"))
    if done.returncode:
        raise SystemExit(done.returncode)
    rows = [*kept_rows(arguments.write, chosen), *map(row, report["cells"])]
    rows.sort(key=lambda row: list(VARIANTS).index(row[0]))
    steps = [
        f"{step['id']}: {step['cpu_seconds']:.0f} CPU s, "
        f"{(step['peak_anonymous_bytes'] or 0) / 1e6:,.0f} MB"
        for step in report["steps"]
        if step["id"].startswith(("quantize.", "activations."))
    ]
    title = f"# What each variant loses: {arguments.model}, phibuild {__version__}\n"
    command = "Made by `python benchmarks/variants.py --write docs/variants.md`.\n"
    table = tabulate(rows, HEADERS, tablefmt="github", disable_numparse=True)
    calibrations = f"Calibrations: {'; '.join(steps)}.\n"
    if arguments.backends and arguments.write:  # those of all grids
        calibrations = arguments.write.read_text("utf-8").splitlines(keepends=True)[-1]
    text = "\n".join([title, command, table, FOOT, calibrations])
    print(text)
    if arguments.write:
        arguments.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
