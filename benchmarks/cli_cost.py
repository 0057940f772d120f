"""What the command line itself costs: CPU seconds, wall seconds and peak memory of

--help, a plan of edge_release, a plan of 10,000 cells, and a build that finds everything built.
Each is measured beside `python -c pass` in the same run, so that a slow machine shows as such.

    python benchmarks/cli_cost.py [--json FILE]

The last needs a first build, which it makes in a temporary store (without judging).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from phibuild.backends.registry import SHIPPED
from phibuild.schema import PRECISIONS

DEVICE = """\
title: generated device {number}
class: iot
memory: 8 GiB
budget: 6 GiB
accelerators: [cpu, metal, cuda, webgpu, openvino_gpu]
context_length: 4096
sources: {{memory: generated, budget: generated, context_length: generated}}
"""


def write_large_recipe(folder: Path, devices: int = 500) -> int:
    """Write devices, and a recipe of all backends at all precisions for them; return its cells."""
    (folder / "device").mkdir(parents=True)
    (folder / "recipes").mkdir()
    lines = ["description: generated", "devices:"]
    for number in range(devices):
        name = f"device_{number:03}"
        (folder / "device" / f"{name}.yaml").write_text(DEVICE.format(number=number))
        lines.append(f"  {name}:")
        lines += [f"    {backend}: [{', '.join(PRECISIONS)}]" for backend in SHIPPED]
    (folder / "recipes" / "large.yaml").write_text("\n".join(lines) + "\n")
    return devices * len(SHIPPED) * len(PRECISIONS)


def measure(words: Sequence[str], folder: Path, store: Path) -> tuple[float, float, float]:
    """Run a command; return its CPU seconds, wall seconds and peak resident MB."""
    started = time.perf_counter()
    with (folder / "out.txt").open("w") as out:
        process = subprocess.Popen(
            words,
            cwd=folder,
            env={**os.environ, "PHIBUILD_STORE": str(store)},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{' '.join(words)} failed:\n{(folder / 'out.txt').read_text()}")
    scale = 1 if sys.platform == "darwin" else 1024
    wall = time.perf_counter() - started
    return usage.ru_utime + usage.ru_stime, wall, usage.ru_maxrss * scale / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON too")
    arguments = parser.parse_args()
    command = [sys.executable, "-m", "phibuild"]
    with tempfile.TemporaryDirectory() as name:
        folder, store = Path(name), Path(name) / "store"
        cells = write_large_recipe(folder / "large")
        build = [*command, "build", "backend=llamacpp", "evaluation=none"]
        measure(build, folder, store)
        large = [*command, "plan", "recipe=large", "--config-dir", str(folder / "large")]
        cases = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "phibuild --help": [*command, "--help"],
            "plan recipe=edge_release": [*command, "plan", "recipe=edge_release"],
            f"plan of {cells:,} cells": large,
            "build, all cached": build,
        }
        rows = [(case, *measure(words, folder, store)) for case, words in cases.items()]
    base = rows[0][1]
    table = [(case, cpu, cpu / base, wall, peak) for case, cpu, wall, peak in rows]
    headers = ("command", "CPU s", "x python", "wall s", "peak MB")
    print(tabulate(table, headers, floatfmt=".2f", tablefmt="github"))
    if arguments.json:
        Path(arguments.json).write_text(
            json.dumps([dict(zip(headers, row, strict=True)) for row in table], indent=1)
        )


if __name__ == "__main__":
    main()
