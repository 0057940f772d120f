"""What GPTQ costs: CPU time, memory and bytes of a checkpoint's first grid and of further ones.

    python benchmarks/calibration.py WORK [--size 0.44b|3.8b|14b] [--layers N] [--grids 1,5]

Makes a seeded random checkpoint of the size below WORK (its first N layers alone, where the whole
would take hours: the cost is that of a layer times their number, but for the embedding), then runs
the step by itself, in the pytorch toolchain, for each number of grids, and prints a table. Random
weights show the cost; what is gained shows on a trained model (docs/quantization.md).
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from tabulate import tabulate

import random_checkpoint
from measuring import measured
from phibuild.backends.calibration import CHUNK_TOKENS, TOKENS
from phibuild.backends.pytorch.memory import quantize_memory
from phibuild.config.catalogue import DATA
from phibuild.toolchains.environment import toolchain
from phibuild.worker.architecture import read_architecture
from phibuild.worker.entry import PACKAGE
from phibuild.worker.grids import Grid

GRIDS = (
    ("Q4_0", Grid(4, 32, "middle", "F16")),
    ("OpenVINO asym g64", Grid(4, 64, "code", "F16")),
    ("MLX affine g64", Grid(4, 64, "bias", "BF16", head=True)),
    ("W4A16 g128", Grid(4, 128, "middle", "BF16", negative=False)),
    ("MatMulNBits sym g32", Grid(4, 32, "middle", "F32", head=True)),
)
_TEXT = DATA / "phi3-tiny-trained" / "calibration.txt"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--size", default="0.44b", choices=random_checkpoint.SHAPES)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--grids", default="1,2")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    shape = random_checkpoint.SHAPES[arguments.size]
    whole = shape["num_hidden_layers"]
    layers = arguments.layers or whole
    shape["num_hidden_layers"] = layers
    source = random_checkpoint.make(arguments.size, arguments.work / f"{arguments.size}-{layers}")
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    arch = read_architecture(config)
    rows = []
    for count in map(int, arguments.grids.split(",")):
        scratch = arguments.work / "codes"
        shutil.rmtree(scratch, ignore_errors=True)
        items = []
        for name, grid in GRIDS[:count]:
            output = scratch / name.replace(" ", "-")
            output.mkdir(parents=True)
            items.append({"item": name, "grid": grid.to_json(), "output": str(output)})
        request = {
            "verb": "quantize",
            "items": items,
            "source": str(source),
            "architecture": arch.to_json(),
            "states": str(scratch / "states"),
            "threads": arguments.threads,
            "text": str(_TEXT),
            "tokens": TOKENS,
            "chunk_tokens": CHUNK_TOKENS,
        }
        command: list[str | Path] = [
            toolchain("pytorch").python,
            "-P",
            PACKAGE / "worker" / "entry.py",
            "pytorch",
        ]
        log = arguments.work / "calibration.log"
        cost = measured(command, {}, log, stdin=json.dumps(request))
        size = sum(path.stat().st_size for path in scratch.rglob("*.safetensors"))
        rows.append(
            [
                ", ".join(name for name, _ in GRIDS[:count]),
                f"{cost.cpu_seconds:,.0f}",
                f"{cost.cpu_seconds / layers * whole / 60:,.1f}",
                f"{cost.peak_anonymous_bytes / 1e9:.2f}",
                f"{quantize_memory(arch, TOKENS, CHUNK_TOKENS) / 1e9:.2f}",
                f"{size / 1e9:.2f}",
            ]
        )
    headers = ("grids", "CPU s", f"CPU min of {whole} layers", "peak GB", "bound GB", "codes GB")
    print(tabulate(rows, headers, tablefmt="github"))
    shutil.rmtree(arguments.work / "codes", ignore_errors=True)


if __name__ == "__main__":
    main()
