"""What judging costs, as far as it has to go and over all windows: CPU, wall time, verdicts.

    python benchmarks/judging.py WORK [--size 0.44b|3.8b] [--layers N] [--adaptive]
                                [--backends NAME ...] [--write FILE]

Makes a seeded random checkpoint of the size below WORK (its first N layers alone, where the whole
would take an hour or the disk is small), builds int4 and int8 of every backend, or of those named,
and judges all of them twice, with `evaluation.adaptive` and without; both by the same logits of the
original, which the first computes. At 3.8 B all windows take hours, which `--adaptive` leaves out.
Linux; the toolchains must be installed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from tabulate import tabulate

import random_checkpoint
from measuring import Cost, measured
from phibuild.backends.registry import SHIPPED
from phibuild.errors import EXIT_GATE_FAILED, EXIT_OK
from vendors import ROOT

_RECIPE = """\
devices:
  anything: {{{backends}}}
gates:
  kl: {{int4: 0.25, int8: 0.01}}
"""
_DEVICE = """\
title: anything
class: ai_pc
memory: 64 GiB
budget: 64 GiB
accelerators: [cpu, metal, cuda]
context_length: 4096
sources: {memory: assumed, budget: assumed, context_length: assumed}
"""


def run(work: Path, source: Path, *words: str) -> tuple[Cost, dict[str, Any]]:
    """Build what is not there; return the cost and the report."""
    command = [sys.executable, "-m", "phibuild", "build", "recipe=all", f"model={source}", *words]
    command += ["--config-dir", str(work / "config"), "--output", str(work / "outputs")]
    environ = {"PHIBUILD_STORE": str(work / "store"), "PYTHONPATH": str(ROOT)}
    # Random weights lose more than gates allow: a verdict as good as another.
    cost = measured(command, environ, work / "log.txt", good=(EXIT_OK, EXIT_GATE_FAILED))
    report = (work / "outputs" / "all" / "latest" / "report.json").read_text("utf-8")
    data: dict[str, Any] = json.loads(report)
    shutil.rmtree(work / "outputs")
    return cost, data


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--size", default="0.44b", choices=random_checkpoint.SHAPES)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--adaptive", action="store_true", help="not over all windows")
    parser.add_argument("--backends", nargs="+", default=SHIPPED, choices=SHIPPED)
    parser.add_argument("--write", type=Path, help="the table, as Markdown")
    arguments = parser.parse_args()
    work: Path = arguments.work
    shape = random_checkpoint.SHAPES[arguments.size]
    layers = shape["num_hidden_layers"] = arguments.layers or shape["num_hidden_layers"]
    source = random_checkpoint.make(arguments.size, work / f"{arguments.size}-{layers}")
    for folder in ("device", "recipes"):
        (work / "config" / folder).mkdir(parents=True, exist_ok=True)
    (work / "config" / "device" / "anything.yaml").write_text(_DEVICE)
    backends = ", ".join(f"{name}: [int4, int8]" for name in arguments.backends)
    recipe = _RECIPE.format(backends=backends).replace(
        "ort_genai: [int4, int8]", "ort_genai: {int4: {provider: cpu}, int8: {provider: cpu}}"
    )
    (work / "config" / "recipes" / "all.yaml").write_text(recipe)
    run(work, source, "evaluation=none")
    rows, verdicts = [], []
    ways: tuple[tuple[str, ...], ...] = ((), ("evaluation.adaptive=false",))
    for words in ways[: 1 if arguments.adaptive else 2]:
        shutil.rmtree(work / "store" / "measures", ignore_errors=True)
        if not words:
            shutil.rmtree(work / "store" / "references", ignore_errors=True)
        cost, report = run(work, source, *words)
        steps = {step["id"].partition(".")[0]: 0.0 for step in report["steps"]}
        for step in report["steps"]:
            steps[step["id"].partition(".")[0]] += step["cpu_seconds"]
        cells = report["cells"]
        verdicts.append({cell["id"]: [gate["passed"] for gate in cell["gates"]] for cell in cells})
        windows = [cell["quality"]["windows"] for cell in cells]
        for step in report["steps"]:
            print(f"{step['id']}: {step['cpu_seconds']:,.0f} CPU s", flush=True)
        rows.append(
            [
                "all windows" if words else "as far as it has to go",
                f"{min(windows)} to {max(windows)}",
                f"{steps['measure']:,.0f}",
                f"{steps.get('reference', 0):,.0f}",
                f"{cost.cpu_seconds:,.0f}",
                f"{cost.wall_seconds:,.0f}",
                f"{cost.peak_anonymous_bytes / 1e9:.2f}",
            ]
        )
        print(rows[-1], flush=True)
    headers = ("judging", "windows", "judging, CPU s", "original, CPU s", "whole command, CPU s",
               "wall s", "peak anonymous GB")  # fmt: skip
    same = "the same" if verdicts[0] == verdicts[-1] else f"not the same: {verdicts}"
    text = tabulate(rows, headers, tablefmt="github")
    text += f"\n\n{arguments.size}, {layers} layers, {len(verdicts[0])} artifacts"
    text += "." if arguments.adaptive else f"; verdicts: {same}."
    print(text)
    if arguments.write:
        arguments.write.write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
