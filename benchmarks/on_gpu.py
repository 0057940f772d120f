"""What an NVIDIA GPU makes of the artifacts for it: their loss, speed and memory there.

    python benchmarks/on_gpu.py WORK [--model MODEL] [--torch PYTHON] [--write docs/gpu.md]
    python benchmarks/on_gpu.py WORK --cpu

Builds and judges ort_genai's int4, int8 and fp16 for CUDA, and with --torch pytorch's int4, W8A8
and FP8. Then each goes to the first GPU in a runtime that uses it (benchmarks/on_gpu_run.py) and is
fed the windows that phibuild judged it by; its divergence from the original is reckoned here anew.
ONNX Runtime GenAI comes with its CUDA libraries (tests/vendors/cuda.txt, 2.6 GB); PYTHON is that of
an environment with a PyTorch that knows the GPU, Transformers and compressed-tensors, as vLLM's is.

--cpu runs the same without a GPU, in phibuild's own toolchains: it shows that this program reckons
as phibuild does, and says nothing of a GPU. Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from phibuild.errors import EXIT_CELL_FAILED, EXIT_USAGE
from phibuild.toolchains.environment import Toolchain, toolchain
from vendors import ROOT

_RECIPE = """\
devices:
  rtx_16gb:
    ort_genai:
      int4: {{provider: cuda}}
      int8: {{provider: cuda}}
      fp16: {{provider: cuda}}
{torch}"""
_TORCH = """\
    pytorch:
      int4:
      int8: [{scheme: W8A8}, {scheme: FP8_DYNAMIC}]
"""
_HEADING = "## What it did\n"
_HEADERS = ("backend", "variant", "MB", "KL, judged on the CPU", "KL on the {}", "original's token",
            "prefill t/s", "decode t/s", "GPU memory MB")  # fmt: skip


@dataclass(frozen=True)
class Gpu:
    """The first GPU, as nvidia-smi has it."""

    name: str
    driver: str

    def used(self) -> int:
        """Return the bytes of its memory that are taken."""
        return int(_smi("memory.used").split()[0]) << 20


def find_gpu() -> Gpu:
    """Return the first NVIDIA GPU. Raises OSError or RuntimeError if there is none."""
    name, driver = (word.strip() for word in _smi("name,driver_version").split(","))
    return Gpu(name, driver)


def _smi(what: str) -> str:
    words = ["nvidia-smi", "--id=0", f"--query-gpu={what}", "--format=csv,noheader,nounits"]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"nvidia-smi: {(done.stdout + done.stderr).strip()}")
    return done.stdout.splitlines()[0]


def build(work: Path, model: str, *, torch: bool) -> dict[str, Any]:
    """Build what is for a GPU and judge it on the CPU over all windows; return report.json."""
    recipes = work / "config" / "recipes"
    recipes.mkdir(parents=True, exist_ok=True)
    (recipes / "gpu.yaml").write_text(_RECIPE.format(torch=_TORCH if torch else ""))
    words = [sys.executable, "-m", "phibuild", "build", "recipe=gpu", f"model={model}"]
    words += ["evaluation.adaptive=false", "--config-dir", str(work / "config")]
    words += ["--output", str(work / "outputs")]
    subprocess.run(words, check=True, env={**os.environ, "PHIBUILD_STORE": str(work / "store")})
    text = (work / "outputs" / "gpu" / "latest" / "report.json").read_text("utf-8")
    report: dict[str, Any] = json.loads(text)
    return report


def run(python: Path, backend: str, artifact: Path, windows: Path, *, cuda: bool) -> dict[str, Any]:
    """Run an artifact; return its logits [W, T, V] and rates. Raises CalledProcessError."""
    with tempfile.TemporaryDirectory(dir=windows.parent) as folder:
        logits = Path(folder) / "logits.npy"
        words = [python, Path(__file__).with_name("on_gpu_run.py"), backend, artifact, windows]
        words += [logits, "cuda" if cuda else "cpu"]
        done = subprocess.run([str(w) for w in words], check=True, stdout=subprocess.PIPE)
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        found["logits"] = np.load(logits)
    return found


def divergence(original: Any, logits: Any) -> tuple[float, float, float]:
    """Return the mean KL(original || logits) in nats, its standard error over windows, and the
    share of positions whose likeliest token is the original's; of logits [W, T, V]."""
    windows, same = [], []
    for theirs, ours in zip(original, logits, strict=True):
        p, q = (_log_softmax(side[:, : ours.shape[-1]]) for side in (theirs, ours))
        windows.append((np.exp(p) * (p - q)).sum(-1).mean())
        same.append((p.argmax(-1) == q.argmax(-1)).mean())
    error = np.std(windows, ddof=1) / np.sqrt(len(windows))
    return float(np.mean(windows)), float(error), float(np.mean(same))


def _log_softmax(logits: Any) -> Any:
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(-1, keepdims=True))


def watched(gpu: Gpu | None, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Do the work; return what it does, with the GPU memory that it took at most, in bytes."""
    if gpu is None:
        return work()
    before, peak, done = gpu.used(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.1):
            peak = max(peak, gpu.used())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        found = work()
    finally:
        done.set()
        thread.join()
    return {**found, "memory": max(0, peak - before)}


def rows(arguments: argparse.Namespace, gpu: Gpu | None) -> list[Sequence[str]]:
    """Build, run and compare everything."""
    work: Path = arguments.work.resolve()
    torch = arguments.torch is not None or gpu is None
    report = build(work, arguments.model, torch=torch)
    (reference,) = (work / "store" / "references").glob("*/logits.npy")
    original = np.load(reference, mmap_mode="r")
    windows = work / "windows.npy"
    np.save(windows, np.load(reference.with_name("windows.npy"))[:, :-1])
    made: list[Sequence[str]] = []
    for cell in report["cells"]:
        backend, quality = cell["backend"], cell["quality"]
        artifact = work / "outputs" / "gpu" / "latest" / cell["artifact"]
        python = _python(backend, arguments.torch, gpu)
        try:
            go = partial(run, python, backend, artifact, windows, cuda=gpu is not None)
            found = watched(gpu, go)
        except subprocess.CalledProcessError as error:
            failed = f"failed: exit code {error.returncode}"
            made.append((backend, cell["variant"], *[""] * 2, failed, *[""] * 4))
            continue
        kl, spread, same = divergence(original, found["logits"])
        made.append(
            (
                backend,
                cell["variant"],
                f"{cell['size_bytes'] / 1e6:.2f}",
                f"{quality['kl_mean']:.3g} ± {quality['kl_error']:.2g}",
                f"{kl:.3g} ± {spread:.2g}",
                f"{same:.1%}",
                f"{found['prefill']:,.0f}",
                f"{found['decode']:,.1f}",
                f"{found['memory'] / 1e6:,.0f}" if gpu else "",
            )
        )
    return made


def _python(backend: str, torch: Path | None, gpu: Gpu | None) -> Path:
    if gpu is None:
        tools = toolchain(backend)
    elif backend == "pytorch":
        assert torch is not None
        return torch
    else:
        tools = Toolchain("vendor-cuda", ROOT / "tests" / "vendors" / "cuda.txt")
    tools.install()
    return tools.python


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--model", default="phi3-tiny-trained", help="as phibuild takes it")
    parser.add_argument("--torch", type=Path, metavar="PYTHON", help="run pytorch's artifacts too")
    parser.add_argument("--cpu", action="store_true", help="the same without a GPU")
    parser.add_argument("--write", type=Path, help="docs/gpu.md: the table goes below its heading")
    arguments = parser.parse_args()
    if arguments.cpu and arguments.write:
        parser.error("--write is for what a GPU did, not for --cpu")
    gpu = None
    if not arguments.cpu:
        try:
            gpu = find_gpu()
        except (OSError, RuntimeError) as error:
            print(f"no NVIDIA GPU: {error}; --cpu runs the same without one", file=sys.stderr)
            return EXIT_USAGE
    table = rows(arguments, gpu)
    headers = [word.format("GPU" if gpu else "CPU, by this program") for word in _HEADERS]
    text = tabulate(table, headers, tablefmt="github", disable_numparse=True)
    print(text)
    if arguments.write and gpu:
        before = arguments.write.read_text("utf-8").partition(_HEADING)[0]
        ran = f"{gpu.name}, driver {gpu.driver}, model {arguments.model}"
        arguments.write.write_text(f"{before}{_HEADING}{ran}:\n\n{text}\n", "utf-8")
    return EXIT_CELL_FAILED if any("failed" in row[4] for row in table) else 0


if __name__ == "__main__":
    sys.exit(main())
