"""Judge artifacts inside their own toolchain: load, compare, decode step by step, time.

Runs in a worker. Windows and the original's logits come from the reference folder, memory-mapped;
one window's logits are held at a time.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from phibuild.worker.interface import Logits, Prefilling, Runtime, Tokens, Worker
from phibuild.worker.metrics import Comparison, divergence
from phibuild.worker.pairing import Window
from phibuild.worker.protocol import Report, WorkerError, peak_rss_bytes, reset_peak_rss
from phibuild.worker.requests import JudgeItem, JudgeRequest
from phibuild.worker.stopping import Stopped, enough, spread

# Kernels of one token and of many tokens round differently, above all where activations are
# quantized on the way; a broken cache shows as whole nats.
CACHED_DECODING_LIMIT = 0.02

# Decoding step by step, and a runtime's own kernels, are given about so long; where all the tokens
# that were asked for would take longer, fewer are taken, and rates are of those.
_SECONDS = 30.0
_FEWEST = 4
_PARTS = 8
"""Stretches of a window whose loss is told apart: a cache or rope factors that go wrong do so with
the position."""


@dataclass(frozen=True)
class _Reference:
    """The original: windows [W, T + 1] of tokens, the logits [W, T, V] that artifacts are compared
    with, and those of the usual rope factors where the runtime has others."""

    windows: NDArray[np.int32]
    compared: Logits
    default: Logits | None

    def first(self, tokens: int | None) -> _Reference:
        """Return the same of the first tokens of each window; None: of all."""
        if tokens is None:
            return self
        default = None if self.default is None else self.default[:, :tokens]
        return _Reference(self.windows[:, : tokens + 1], self.compared[:, :tokens], default)


def judge(worker: Worker, request: JudgeRequest, report: Report) -> None:
    """Judge each item of the request; one that fails does not stop the others."""
    with report.loading():
        worker.prepare()  # imports that would count as the first artifact's load time otherwise
    reference = _read(Path(request["reference"]), worker.REFERENCE)
    for item in request["items"]:
        try:
            result = _judge_one(worker, item, reference, request, report)
        except Exception as error:  # whatever a runtime raises, the other artifacts are judged
            report.failed(item["item"], error)
        else:
            report.item(item["item"], result)
        gc.collect()


def _read(folder: Path, name: str) -> _Reference:
    """Return the reference in a folder; `name` is Worker.REFERENCE."""
    windows = np.load(folder / "windows.npy")
    default: Logits = np.load(folder / "logits.npy", mmap_mode="r")
    if name == "logits" or not (folder / f"{name}.npy").exists():
        return _Reference(windows, default, None)
    return _Reference(windows, np.load(folder / f"{name}.npy", mmap_mode="r"), default)


def _judge_one(
    worker: Worker,
    judged: JudgeItem,
    reference: _Reference,
    request: JudgeRequest,
    report: Report,
) -> dict[str, object]:
    item, folder = judged["item"], Path(judged["folder"])
    reference = reference.first(judged.get("tokens"))
    windows, compared, default = reference.windows, reference.compared, reference.default
    reset_peak_rss()
    report.stage("loading", item=item)
    started = time.perf_counter()
    runtime = worker.load(folder, request["threads"])
    load_seconds = time.perf_counter() - started

    comparison, runtime_gap = Comparison(), Comparison()
    seconds: list[float] = []
    judged_by: list[int] = []
    vocabulary = compared.shape[-1]
    prompt = windows[0][:-1].astype(np.int64)
    steps = min(request["decode_tokens"], len(prompt) - 1)
    # Of the first window's logits what is compared again: all of them are large.
    opening = ending = np.empty((0, vocabulary), np.float32)
    stopped: Stopped = "all"
    for count, number in enumerate(spread(len(windows)), 1):
        window = windows[number]
        ids, targets = window[:-1].astype(np.int64), window[1:].astype(np.int64)
        started = time.perf_counter()
        logits = runtime.logits(ids)[:, :vocabulary]
        seconds.append(time.perf_counter() - started)
        comparison.add(compared[number], logits, targets)
        judged_by.append(number)
        if default is not None:
            runtime_gap.add(default[number], logits, targets)
        if number == 0:
            opening, ending = logits[: 2 * steps].copy(), logits[len(prompt) - steps :].copy()
        del logits  # before there are others
        report.stage("judging", count / len(windows), item=item)
        if request["adaptive"] and (why := _enough(comparison, judged_by, judged)):
            stopped = why
            break

    report.stage("decoding", item=item)
    decoded, decode_rate = _decode(runtime, prompt, steps, vocabulary)
    start, ending = len(prompt) - steps, ending[: len(decoded)]
    quality: dict[str, object] = {
        **comparison.summary(),
        "stopped": stopped,
        "by_window": [
            {"window": number, **figures}
            for number, figures in zip(judged_by, comparison.by_window(), strict=True)
        ],
        "by_position": comparison.by_position(_PARTS),
    }
    decoding_kl = quality["cached_decoding_kl"] = _mean_kl(ending, decoded)
    original = compared[0][start : start + len(decoded)]
    _check_decoding(decoding_kl, original, ending, decoded)
    prefill_rate = (len(windows[0]) - 1) / float(np.median(seconds[1:] or seconds))
    if isinstance(runtime, Prefilling):
        started = time.perf_counter()
        runtime.prefill(prompt)
        prefill_rate = len(prompt) / (time.perf_counter() - started)
    native = runtime.native()
    if native is not runtime:
        prompt = prompt[: _affordable(native, prompt[: 2 * steps])]
        native.logits(prompt[: len(prompt) // 2])  # the first pass compiles
        started = time.perf_counter()
        own = native.logits(prompt)[:, :vocabulary]
        prefill_rate = len(prompt) / (time.perf_counter() - started)
        quality["native_kl"] = float(divergence(opening[: len(prompt)], own).mean())
        _, decode_rate = _decode(native, prompt, len(prompt) // 2, vocabulary)
    if default is not None:
        quality["runtime_kl"] = runtime_gap.summary()["kl_mean"]
    return {
        "quality": quality,
        "speed": {
            "load_seconds": load_seconds,
            "prefill_tokens_per_second": prefill_rate,
            "decode_tokens_per_second": decode_rate,
        },
        "peak_rss_bytes": peak_rss_bytes(),
    }


def _enough(comparison: Comparison, numbers: Sequence[int], judged: JudgeItem) -> Stopped | None:
    """Return why no more windows are needed after those of these numbers."""
    windows: list[Window] = [
        {
            "window": number,
            "kl": found["kl"],
            "top1": found["top1"],
            "reference_nll": found["reference_nll"],
        }
        for number, found in zip(numbers, comparison.by_window(), strict=True)
    ]
    return enough(comparison.summary(), judged["limits"], windows, judged.get("comparisons", ()))


def _affordable(runtime: Runtime, prompt: Tokens) -> int:
    """Return how many tokens of the prompt take about `_SECONDS`, by the time of one."""
    runtime.logits(prompt[:1])
    started = time.perf_counter()
    runtime.logits(prompt[:1])
    affordable = int(_SECONDS / (time.perf_counter() - started))
    return min(len(prompt), max(_FEWEST, affordable))


def _decode(
    runtime: Runtime, ids: Tokens, steps: int, vocabulary: int
) -> tuple[NDArray[np.float32], float]:
    """Feed the last `steps` tokens one by one after a prompt, fewer if they take too long; return
    the logits [n, vocabulary] that followed them, and tokens/s."""
    start = len(ids) - steps
    if isinstance(runtime, Prefilling):
        runtime.prefill(ids[:start])
    else:
        runtime.logits(ids[:start])
    rows: list[Logits] = []
    started = time.perf_counter()
    for position in range(start, len(ids)):
        rows.append(runtime.extend(ids[position : position + 1])[0, :vocabulary])
        seconds = time.perf_counter() - started
        if seconds > _SECONDS and len(rows) >= _FEWEST:
            break
    return np.stack(rows), len(rows) / seconds


def _mean_kl(expected: Logits, found: Logits) -> float:
    return float(np.maximum(divergence(expected, found), 0).mean())


def _check_decoding(kl: float, original: Logits, one_pass: Logits, decoded: Logits) -> None:
    """Raise WorkerError if decoding one by one is another model than one pass: it is far from that,
    and clearly further from the original. Runtimes that round activations (accuracy level 4 of
    MatMulNBits) are far from themselves, yet as close to the original, where a model amplifies
    every rounding."""
    if kl <= CACHED_DECODING_LIMIT:
        return
    losses = _mean_kl(original, one_pass), _mean_kl(original, decoded)
    if losses[1] > 1.5 * losses[0] + CACHED_DECODING_LIMIT:
        raise WorkerError(
            f"cached decoding disagrees with one pass: mean KL {kl:.3g} nats "
            f"(limit {CACHED_DECODING_LIMIT}), {losses[1]:.3g} instead of {losses[0]:.3g} from the "
            "original; this artifact would generate other text than it was judged by"
        )
