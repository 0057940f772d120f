"""What the executor costs beside the work: a build of the quickstart, and 1,000 cached cells.

    python benchmarks/executor_cost.py [--json FILE]

Builds and judges the quickstart in an empty store: CPU seconds of the whole command over those
that its runners counted themselves. Then a recipe of 1,000 cells (50 devices, each with the
quickstart's 20 variants) twice: what the second build takes, which finds everything in the store.
Toolchains must be installed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from cli_cost import write_large_recipe
from measuring import Cost, measured

ROOT = Path(__file__).resolve().parents[1]


def build(folder: Path, recipe: str, *words: str) -> tuple[Cost, dict[str, Any]]:
    """Run a build with the store of `folder`; return its cost and its report."""
    command: Sequence[str] = [sys.executable, "-m", "phibuild", "build", f"recipe={recipe}", *words]
    command = [*command, "--output", str(folder / "outputs")]
    environ = {"PHIBUILD_STORE": str(folder / "store"), "PYTHONPATH": str(ROOT)}
    cost = measured(command, environ, folder / "log.txt")
    report = (folder / "outputs" / recipe / "latest" / "report.json").read_text("utf-8")
    data: dict[str, Any] = json.loads(report)
    return cost, data


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path, help="write the figures as JSON too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cost, report = build(folder, "quickstart")
        work = sum(step["cpu_seconds"] for step in report["steps"])
        cells = write_large_recipe(folder / "large", 50)
        large = ("--config-dir", str(folder / "large"))
        build(folder, "large", *large)
        cached, _ = build(folder, "large", *large)
        # It found nothing new: all was in the store.
        assert (folder / "outputs" / "large" / "latest" / "confirmed.json").exists()
    figures = {
        "quickstart, whole command, CPU s": cost.cpu_seconds,
        "of it its runners, CPU s": work,
        "whole command / runners": cost.cpu_seconds / work,
        f"{cells:,} cached cells, wall s": cached.wall_seconds,
        f"{cells:,} cached cells, CPU s": cached.cpu_seconds,
        f"{cells:,} cached cells, peak anonymous MB": cached.peak_anonymous_bytes / 1e6,
    }
    print(tabulate(figures.items(), ("what", "figure"), floatfmt=".2f", tablefmt="github"))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
