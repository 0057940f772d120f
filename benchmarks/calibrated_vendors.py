"""phibuild's calibrated int4 beside the vendors' own: what is lost, and what it takes.

    python benchmarks/calibrated_vendors.py WORK [--size 0.44b] [--formats a,b] [--json FILE]
                                            [--write docs/calibrated_vendors.md]

Loss: the embedded model and its calibration text; phibuild's artifacts and the vendors' are judged
by the same runtime against the same fp32 original over the held-out text. Cost: a seeded random
checkpoint of the size, and whole commands: the vendor's from the checkpoint to the file of
weights, and `phibuild build ... evaluation=none` with an empty store, which also hashes, checks and
seals. Vendors see the chunks of tokens that phibuild sees; llama-imatrix takes the same number of
tokens from the beginning of the text. A vendor's command that fails is a row that says so.

What the JSON file (WORK/calibrated_vendors.json) holds is not measured again. Linux; needs the
vendors' environments, which are installed, and for llama.cpp cmake and a C++ compiler.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

import random_checkpoint
from calibrated_commands import FORMATS, Commands, Format
from calibrated_page import page
from measuring import Cost, measured
from phibuild.config.catalogue import DATA
from phibuild.execute.runner.events import Event, Failed, Item
from phibuild.execute.runner.process import Runner, run_worker
from phibuild.toolchains.environment import toolchain
from phibuild.worker.requests import JudgeRequest
from variants import write_recipe
from vendors import OFFLINE, ROOT

Row = dict[str, Any]


class Benchmark:
    """Measurements in the folder `work`; `kept` are those that are made already."""

    def __init__(self, work: Path, file: Path) -> None:
        self.work, self.file, self.log = work, file, work / "log.txt"
        self.kept: list[Row] = json.loads(file.read_text("utf-8")) if file.exists() else []

    def run(self, model: str, source: Path, names: list[str], evaluation: str) -> None:
        """Measure all that is not there yet of these formats, phibuild first."""
        for name in names:
            form = FORMATS[name]
            ours, theirs = form.methods, form.vendors
            if evaluation != "none":
                ours, theirs = {"nearest": {}, **ours}, {**theirs, **form.more}
            for method, options in ours.items():
                key = {"model": model, "format": name, "by": f"phibuild, {method}"}
                if self._lacks(key):
                    self._keep(key | self._ours(source, form, options, evaluation))
            for by, commands in theirs.items():
                key = {"model": model, "format": name, "by": by}
                if self._lacks(key):
                    self._keep(key | self._theirs(source, form, commands, evaluation))

    def _ours(self, source: Path, form: Format, more: Mapping[str, Any], evaluation: str) -> Row:
        """Build one artifact in an empty store."""
        for name in ("config", "store", "outputs"):
            shutil.rmtree(self.work / name, ignore_errors=True)
        cell = {form.backend: {"int4": [{**form.options, **more}]}}
        write_recipe(self.work / "config", cell)
        for name in {form.backend, "pytorch"}:
            toolchain(name).install()
        words = [sys.executable, "-m", "phibuild", "build", "recipe=variants", f"model={source}"]
        words += [f"evaluation={evaluation}", "evaluation.adaptive=false"]
        words += ["--config-dir", str(self.work / "config")]
        words += ["--output", str(self.work / "outputs")]
        environ = {"PHIBUILD_STORE": str(self.work / "store"), "PYTHONPATH": str(ROOT)}
        cost = measured(words, environ, self.log, cold=_weights(source))
        latest = self.work / "outputs" / "variants" / "latest"
        report = json.loads((latest / "report.json").read_text("utf-8"))
        (made,) = report["cells"]
        steps = [
            {key: step[key] for key in ("seconds", "cpu_seconds", "peak_anonymous_bytes")}
            for step in report["steps"]
            if step["id"].startswith(("quantize.", "activations."))
        ]
        size = _size(latest / made["artifact"], form)
        for windows in (self.work / "store").rglob("windows.npy"):
            shutil.copytree(windows.parent, self.work / "reference", dirs_exist_ok=True)
        return {"cost": cost.to_json(), "steps": steps, "bytes": size, "quality": made["quality"]}

    def _theirs(self, source: Path, form: Format, commands: Commands, evaluation: str) -> Row:
        """Run a vendor's commands; judge what they wrote as phibuild judges its own, by the
        original's logits that its builds left."""
        output = self.work / "vendor"
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir()
        cost: Cost | None = None
        for command in commands(source, output, self.work):
            one = measured(
                command.words,
                OFFLINE,
                self.log,
                stdin=command.stdin,
                cold=_weights(source),
                may_fail=True,
            )
            cost = one if cost is None else cost + one
            if one.failed:
                break
        assert cost is not None  # every vendor has a command
        row: Row = {"cost": cost.to_json(), "steps": [], "bytes": 0, "quality": None}
        if not cost.failed:
            row["bytes"] = _size(output, form)
            if evaluation != "none":
                row |= self._judged(form.backend, output)
        return row

    def _judged(self, backend: str, folder: Path) -> Row:
        request: JudgeRequest = {
            "verb": "judge",
            "items": [{"item": "vendor", "folder": str(folder), "limits": {}}],
            "reference": str(self.work / "reference"),
            "threads": 2,
            "decode_tokens": 32,
            "adaptive": False,
        }
        runner = Runner(toolchain(backend).python, backend, self.log, timeout=600)
        events: list[Event] = []
        outcome = run_worker(runner, {**request}, events.append)
        for event in events:
            if isinstance(event, Item):
                return {"quality": event.result["quality"]}
        errors = [event.error for event in events if isinstance(event, Failed)]
        return {"failed": "; ".join(errors) or outcome.crash}

    def _lacks(self, key: Row) -> bool:
        return not any(key.items() <= row.items() for row in self.kept)

    def _keep(self, row: Row) -> None:
        self.kept.append(row)
        self.file.write_text(json.dumps(self.kept, indent=1) + "\n", "utf-8")


def _weights(source: Path) -> list[Path]:
    return sorted(source.glob("*.safetensors"))


def _size(folder: Path, form: Format) -> int:
    return sum(path.stat().st_size for path in folder.glob(form.weights))


def main() -> None:
    """Measure what the command line asks for and show all that has been measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--size", choices=random_checkpoint.SHAPES, default="0.44b")
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    work: Path = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    names = arguments.formats.split(",")
    benchmark = Benchmark(work, arguments.json or work / "calibrated_vendors.json")
    embedded = DATA / "phi3-tiny-trained"
    benchmark.run(embedded.name, embedded, names, "standard")
    source = random_checkpoint.make(arguments.size, work / "models" / arguments.size)
    benchmark.run(arguments.size, source, names, "none")
    machine = f"{platform.machine()}, {psutil.cpu_count()} cores"
    text = page(benchmark.kept, embedded.name, arguments.size, machine)
    print(text)
    if arguments.write:
        arguments.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
