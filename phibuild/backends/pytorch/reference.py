"""The fp32 original's logits over windows of a held-out text: what every artifact is judged by."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from phibuild.backends.pytorch.checkpoint_model import (
    encode,
    load_model,
    load_tokenizer,
    prefix,
    use_long_factors,
)
from phibuild.evaluate.metrics import log_softmax
from phibuild.worker import Report, WorkerError

Windows = NDArray[np.int32]
_PACKAGES = ("torch", "transformers", "tokenizers", "numpy")
_ROWS = 64  # rows widened to float64 at a time


@dataclass(frozen=True)
class Sampling:
    """Up to `windows` windows of `window_tokens` predictions; each file of logits takes at most
    `max_bytes`."""

    windows: int
    window_tokens: int
    max_bytes: int


def reference(request: dict[str, Any], report: Report) -> None:
    """Write windows.npy, logits.npy, meta.json and, if asked and the model is longrope,
    logits_long.npy into the empty folder `output`.

    windows.npy: int32 [W, T+1], BOS first if the tokenizer adds one. logits.npy: float32
    [W, T, V] of the first T ids of each window, V with the padding of the vocabulary.
    logits_long.npy: the same with the long rope factors at every position. A text that is too
    short or does not suit the model fails the item.
    """
    try:
        result = _reference(request, report)
    except Exception as error:  # whatever Transformers raises is this item's failure
        report.failed(request["item"], error)
    else:
        report.item(request["item"], result)


def _reference(request: dict[str, Any], report: Report) -> dict[str, Any]:
    started = time.perf_counter()
    source, output, item = Path(request["source"]), Path(request["output"]), request["item"]
    torch.set_num_threads(request["threads"])
    sampling = Sampling(request["windows"], request["window_tokens"], request["max_bytes"])

    report.stage("tokenizing", item=item)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    vocabulary = int(config["vocab_size"])
    windows = choose_windows(source, Path(request["text"]), vocabulary, sampling)
    np.save(output / "windows.npy", windows)

    report.stage("loading", item=item)
    model = load_model(source, torch.float32)
    perplexity = _write_logits(model, windows, output / "logits.npy", report, item)
    if request["long"] and use_long_factors(model):
        _write_logits(model, windows, output / "logits_long.npy", report, item)

    result = {
        "perplexity": perplexity,
        "windows": int(windows.shape[0]),
        "tokens": int(windows.shape[0] * (windows.shape[1] - 1)),
        "seconds": time.perf_counter() - started,
        "versions": {name: version(name) for name in _PACKAGES},
    }
    (output / "meta.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def choose_windows(source: Path, text: Path, vocabulary: int, sampling: Sampling) -> Windows:
    """Return windows of ids [W, T+1], evenly spaced over the text and not overlapping.

    There are fewer than asked for where the text is short or `max_bytes` is small. Raises
    WorkerError if not even one fits, or if the tokenizer makes an id that the model has not.
    """
    length = sampling.window_tokens
    window_bytes = length * vocabulary * 4
    if window_bytes > sampling.max_bytes:
        raise WorkerError(
            f"the logits of one window of {length} tokens take {window_bytes:,} bytes with "
            f"a vocabulary of {vocabulary:,}, more than the {sampling.max_bytes:,} bytes allowed; "
            "raise evaluation.max_reference_bytes or lower evaluation.window_tokens"
        )
    try:
        content = text.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise WorkerError(f"the held-out text {text.name} is not UTF-8: {error}") from error
    tokenizer = load_tokenizer(source)
    ids, start = encode(tokenizer, content), prefix(tokenizer)
    taken = length + 1 - len(start)  # ids of the text in one window
    if len(ids) < taken:
        raise WorkerError(
            f"the held-out text {text.name} has {len(ids):,} tokens, a window needs {taken:,}; "
            "give a longer text or lower evaluation.window_tokens"
        )
    largest = max(int(ids.max()), *start, 0)
    if largest >= vocabulary:
        raise WorkerError(
            f"the tokenizer makes id {largest:,}, the model's vocabulary ends at "
            f"{vocabulary - 1:,}: tokenizer and weights are not of the same model"
        )
    count = min(sampling.windows, len(ids) // taken, sampling.max_bytes // window_bytes)
    windows = np.empty((count, length + 1), dtype=np.int32)
    windows[:, : len(start)] = start
    for number in range(count):
        first = number * (len(ids) - taken) // max(count - 1, 1)
        windows[number, len(start) :] = ids[first : first + taken]
    return windows


def _write_logits(
    model: PreTrainedModel, windows: Windows, path: Path, report: Report, item: str
) -> float:
    """Write the logits of all windows, one at a time; return the perplexity over them."""
    count, length = windows.shape[0], windows.shape[1] - 1
    stored = np.lib.format.open_memmap(
        path, mode="w+", dtype=np.float32, shape=(count, length, model.config.vocab_size)
    )
    surprise = np.empty((count, length))
    for number, window in enumerate(windows):
        ids = torch.from_numpy(window[None, :-1].astype(np.int64))
        with torch.inference_mode():
            stored[number] = model(input_ids=ids, use_cache=False).logits[0].numpy()
        for row in range(0, length, _ROWS):
            rows = log_softmax(stored[number, row : row + _ROWS])
            targets = window[row + 1 : row + 1 + len(rows), None]
            surprise[number, row : row + _ROWS] = -np.take_along_axis(rows, targets, -1)[:, 0]
        report.stage("reference", (number + 1) / count, item)
    if not np.isfinite(surprise).all():
        raise WorkerError("the original's own logits hold NaN or infinity in fp32")
    stored.flush()
    return float(np.exp(surprise.mean()))
