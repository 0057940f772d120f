"""What runners of the backends that import Transformers take to import it, beside the same imports
without phibuild/worker/lean.py.

    python benchmarks/imports.py [--times 5]

Their toolchains must be installed. Both sides take turns.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

from tabulate import tabulate

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from phibuild.toolchains.environment import toolchain  # noqa: E402

# What a step of the backend imports: the module, or the packages, that take most of it.
IMPORTED = {
    "pytorch": "transformers.models.phi3.modeling_phi3",
    "ort_genai": "phibuild.backends.ort_genai.vendor",
    "mlx": "mlx_lm",
    "openvino": "phibuild.backends.openvino.tokenizer",
}
LEAN = "from phibuild.worker.lean import import_lean; import_lean(); "


def run(python: Path, code: str) -> tuple[float, float]:
    """Return the CPU seconds of a process, and its largest resident memory in MB."""
    process = subprocess.Popen(
        [python, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{python}: {code}: ended with {status}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--times", type=int, default=5)
    times = parser.parse_args().times
    rows = []
    for backend, module in IMPORTED.items():
        python, code = toolchain(backend).python, f"import {module}"
        run(python, LEAN + code)  # what it reads lies in the page cache, names are known
        found: list[list[tuple[float, float]]] = [[], []]
        for _ in range(times):
            for side, before in enumerate(("", LEAN)):
                found[side].append(run(python, before + code))
        (cpu, plain), (lean_cpu, lean) = (
            [statistics.median(column) for column in zip(*side, strict=True)] for side in found
        )
        rows.append((backend, cpu, lean_cpu, lean_cpu / cpu, plain, lean, lean / plain))
    headers = ("backend", "CPU s", "lean", "ratio", "MB", "lean", "ratio")
    print(tabulate(rows, headers, floatfmt=("", ".2f", ".2f", ".2f", ".0f", ".0f", ".2f")))


if __name__ == "__main__":
    main()
