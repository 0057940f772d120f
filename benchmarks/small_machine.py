"""phibuild beside the vendors' own commands: CPU, memory, bytes, and whether the tensors are equal.

    python benchmarks/small_machine.py WORK [--size 0.44b|3.8b] [--backends a,b] [--set] [--json F]

Makes a seeded random checkpoint of the size below WORK, then for each backend and precision runs
the vendor's command and `phibuild build ... evaluation=none`, one after the other, and compares
what they wrote. phibuild's figures are those of its whole command, with the artifact's digests and
manifest; "worker" is the step that does what the vendor's command does. What phibuild does once for
a checkpoint, hashing it, is measured by itself; "first build" adds it. `--set` adds one build of
all four precisions at once and, for llamacpp, what ggml's quantization kernels alone take for them.
A vendor's command that fails, for lack of memory most likely, has its cost until there in the
table. Everything that a run has written is deleted when it has been compared; results are added to
the JSON file, from which the table is made, so that backends can be measured one by one.
`--no-vendor` measures phibuild alone, where the vendor's command needs more memory than there is.
Linux; needs the vendors' environments, which are installed, and for llamacpp cmake and a C++
compiler.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from equality import COMPARE
from measuring import Cost, measured
from phibuild.schema import PRECISIONS
from phibuild.toolchains.environment import toolchain
from random_checkpoint import SHAPES, make
from tables import table
from vendors import GGUF_TYPES, OFFLINE, ROOT, VENDORS

_DEVICE = """\
title: anything
class: ai_pc
memory: 64 GiB
budget: 64 GiB
accelerators: [cpu, cuda, metal, webgpu, openvino_gpu]
context_length: 4096
sources: {memory: assumed, budget: assumed, context_length: assumed}
"""
_HASH = """
import sys
from pathlib import Path
from phibuild.checkpoints.facts import load_checkpoint
from phibuild.planning.keys import source_digest
from phibuild.store.store import Store
source, folder = map(Path, sys.argv[1:])
store = Store(folder)
store.prepare()
source_digest(load_checkpoint(source, "x", "x"), store, read_weights=True)
"""


class Benchmark:
    """The measurements of one size, in the folder `work`."""

    def __init__(self, work: Path, size: str) -> None:
        self.work, self.size = work, size
        self.source = make(size, work / "models" / size)
        self.log = work / "log.txt"
        self.config = work / "config"
        self.hashed = self.hash()
        (self.config / "device").mkdir(parents=True, exist_ok=True)
        (self.config / "recipes").mkdir(exist_ok=True)
        (self.config / "device" / "any.yaml").write_text(_DEVICE)
        cells = "".join(f"    {name}: [{', '.join(PRECISIONS)}]\n" for name in VENDORS)
        (self.config / "recipes" / "all.yaml").write_text(f"devices:\n  any:\n{cells}")

    def hash(self) -> Cost:
        """Hash the checkpoint into an empty store, which builds then find it in."""
        shutil.rmtree(self.work / "store", ignore_errors=True)
        words = [sys.executable, "-c", _HASH, str(self.source), str(self.work / "store")]
        return measured(words, {"PYTHONPATH": str(ROOT)}, self.log, cold=self._weights())

    def vendor(self, backend: str, precision: str) -> tuple[Cost, Path]:
        """Run the vendor's commands; return their cost and the folder that they filled."""
        output = self.work / "vendor" / f"{backend}-{precision}"
        shutil.rmtree(output, ignore_errors=True)
        output.parent.mkdir(exist_ok=True)
        cost: Cost | None = None
        for command in VENDORS[backend].commands(self.source, precision, output, self.work):
            one = measured(
                command.words,
                OFFLINE,
                self.log,
                stdin=command.stdin,
                cold=self._weights(),
                may_fail=True,
            )
            cost = one if cost is None else cost + one
            if one.failed:
                break
        assert cost is not None  # every vendor has a command
        return cost, output

    def ours(self, backend: str, precisions: str) -> tuple[Cost, dict[str, Any]]:
        """Run phibuild with an empty store; return its cost and its report."""
        for name in ("store/artifacts", "store/tmp", "outputs"):
            shutil.rmtree(self.work / name, ignore_errors=True)
        toolchain(backend).install()
        words = [sys.executable, "-m", "phibuild", "build", "recipe=all", f"model={self.source}"]
        words += [f"backend={backend}", f"precision={precisions}", "evaluation=none"]
        words += ["--config-dir", str(self.config), "--output", str(self.work / "outputs")]
        if "," in precisions:
            words.insert(4, "-m")
        environ = {"PHIBUILD_STORE": str(self.work / "store"), "PYTHONPATH": str(ROOT)}
        cost = measured(words, environ, self.log, cold=self._weights())
        report: dict[str, Any] = json.loads(
            (self.work / "outputs" / "all" / "latest" / "report.json").read_text("utf-8")
        )
        return cost, report

    def run_alone(self, backend: str, precisions: Sequence[str]) -> list[dict[str, Any]]:
        """Measure phibuild alone, one precision after the other."""
        return [
            self._row(backend, word, None, *self.ours(backend, word), []) for word in precisions
        ]

    def run(self, backend: str, precisions: Sequence[str], *, whole: bool) -> list[dict[str, Any]]:
        """Measure each precision by itself and, with `whole`, all four in one build."""
        wanted = PRECISIONS if whole else precisions
        alone = {word: self.ours(backend, word) for word in precisions}
        cost, report = self.ours(backend, ",".join(wanted)) if len(wanted) > 1 else alone[wanted[0]]
        rows: list[dict[str, Any]] = []
        found: list[str] = []
        total: Cost | None = None
        for word in wanted:
            theirs, folder = self.vendor(backend, word)
            differing = [] if theirs.failed else self._differing(backend, word, report, folder)
            found += [f"{word}: {what}" for what in differing]
            total = theirs if total is None else total + theirs
            shutil.rmtree(folder, ignore_errors=True)
            self._drop(report, word)
            if word in alone:
                own, its = alone[word]
                digests = [_cell(one, word)["artifact_digest"] for one in (its, report)]
                if digests[0] != digests[1]:
                    differing.append("the artifact differs when it is built with others")
                rows.append(self._row(backend, word, theirs, own, its, differing))
        if whole and total is not None:
            row = self._row(backend, "set", total, cost, report, found)
            rows.append({**row, "floor": self.floor(backend)})
        return rows

    def floor(self, backend: str) -> dict[str, Any] | None:
        """Measure what ggml's kernels alone take for the four precisions."""
        if backend != "llamacpp":
            return None
        program = ROOT / "benchmarks" / "llamacpp_floor.py"
        words: list[str | Path] = [
            toolchain(backend).python,
            program,
            self.source,
            *GGUF_TYPES.values(),
        ]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def _drop(self, report: dict[str, Any], precision: str) -> None:
        """Delete an artifact that has been compared: four of each would need twice the disk."""
        folder = self.work / "outputs" / "all" / "latest" / _cell(report, precision)["artifact"]
        key = json.loads((folder / "manifest.json").read_text("utf-8"))["key"]
        shutil.rmtree(self.work / "store" / "artifacts" / key)
        shutil.rmtree(folder)

    def _differing(
        self, backend: str, precision: str, report: dict[str, Any], vendors: Path
    ) -> list[str]:
        latest = self.work / "outputs" / "all" / "latest"
        return COMPARE[backend](latest / _cell(report, precision)["artifact"], vendors)

    def _row(
        self,
        backend: str,
        what: str,
        theirs: Cost | None,
        ours: Cost,
        report: dict[str, Any],
        differing: list[str],
    ) -> dict[str, Any]:
        (step,) = (step for step in report["steps"] if step["id"].startswith("build."))
        keys = ("seconds", "cpu_seconds", "memory_bytes", "peak_anonymous_bytes")
        return {
            "size": self.size,
            "backend": backend,
            "what": what,
            "hash": self.hashed.to_json(),
            "vendor": theirs.to_json() if theirs else None,
            "phibuild": ours.to_json(),
            "worker": {key: step[key] for key in keys},
            "artifact_bytes": sum(cell["size_bytes"] for cell in report["cells"]),
            "differing": differing,
        }

    def _weights(self) -> list[Path]:
        return sorted(self.source.glob("*.safetensors"))


def _cell(report: dict[str, Any], precision: str) -> dict[str, Any]:
    (cell,) = (cell for cell in report["cells"] if cell["precision"] == precision)
    found: dict[str, Any] = cell
    return found


def main() -> None:
    """Measure what the command line asks for and show all that has been measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--size", choices=SHAPES, default="0.44b")
    parser.add_argument("--backends", default=",".join(VENDORS))
    parser.add_argument("--precisions", default="int4")
    parser.add_argument("--set", action="store_true", help="the four precisions at once, too")
    parser.add_argument("--no-vendor", action="store_true", help="measure phibuild alone")
    parser.add_argument("--json", type=Path, default=None)
    arguments = parser.parse_args()
    work: Path = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    file: Path = arguments.json or work / "small_machine.json"
    kept = json.loads(file.read_text("utf-8"))["results"] if file.exists() else []
    benchmark = Benchmark(work, arguments.size)
    for backend in arguments.backends.split(","):
        precisions = arguments.precisions.split(",")
        rows = (
            benchmark.run_alone(backend, precisions)
            if arguments.no_vendor
            else benchmark.run(backend, precisions, whole=arguments.set)
        )
        for row in rows:
            place = [row[key] for key in ("size", "backend", "what")]
            kept = [old for old in kept if [old["size"], old["backend"], old["what"]] != place]
            kept.append(row)
        machine = f"{platform.machine()}, {psutil.cpu_count()} cores"
        file.write_text(json.dumps({"machine": machine, "results": kept}, indent=1) + "\n")
    for name in ("store", "outputs", "vendor"):
        shutil.rmtree(work / name, ignore_errors=True)
    print(table(kept))


if __name__ == "__main__":
    main()
