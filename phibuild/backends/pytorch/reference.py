"""The fp32 original's logits over windows of a held-out text: what every artifact is judged by."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from phibuild.backends.pytorch.layers import in_batches, through_layers
from phibuild.backends.pytorch.layerwise import LayerwisePhi3
from phibuild.backends.pytorch.memory import SOFTMAX_ROWS
from phibuild.backends.pytorch.threads import use_threads
from phibuild.backends.pytorch.windows import Windows, read_text
from phibuild.worker.architecture import Architecture
from phibuild.worker.metrics import log_softmax
from phibuild.worker.protocol import Report, WorkerError
from phibuild.worker.requests import ReferenceRequest

Logits = NDArray[np.float32]
_PACKAGES = ("torch", "transformers", "tokenizers", "numpy")


@dataclass(frozen=True)
class Sampling:
    """Up to `windows` windows of `window_tokens` predictions; each file of logits takes at most
    `max_bytes`."""

    windows: int
    window_tokens: int
    max_bytes: int


def reference(request: ReferenceRequest, report: Report) -> None:
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


def _reference(request: ReferenceRequest, report: Report) -> Mapping[str, object]:
    started = time.perf_counter()
    source, output, item = Path(request["source"]), Path(request["output"]), request["item"]
    use_threads(request["threads"])
    sampling = Sampling(request["windows"], request["window_tokens"], request["max_bytes"])

    report.stage("tokenizing", item=item)
    arch = Architecture.from_json(request["architecture"])
    windows = choose_windows(source, Path(request["text"]), arch.vocab_size, sampling)
    np.save(output / "windows.npy", windows)

    with torch.inference_mode():
        model = LayerwisePhi3(source, arch)
        ids = torch.from_numpy(windows[:, :-1].astype(np.int64))
        length = ids.shape[1]
        rotations = {"logits.npy": model.positions(0, length)}
        long = model.long_positions(length) if request["long"] else None
        if long is not None:
            rotations["logits_long.npy"] = long
        states = [model.embed(ids) for _ in rotations]
        for layer in through_layers(model, states, list(rotations.values())):
            report.stage("reference", (layer + 1) / model.config.num_hidden_layers, item)
        for batch in (batch for hidden in states for batch in in_batches(hidden)):
            batch.copy_(model.norm(batch))
        stored = _write_logits(model, states, [output / name for name in rotations], report, item)
    perplexities = [_perplexity(logits, windows) for logits in stored]

    result = {
        "perplexity": perplexities[0],
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
    tokenized = read_text(source, text, vocabulary, "held-out")
    windows = tokenized.windows(
        min(sampling.windows, sampling.max_bytes // window_bytes), length + 1
    )
    if not len(windows):
        raise WorkerError(
            f"the held-out text {text.name} has {len(tokenized.ids):,} tokens, a window needs "
            f"{tokenized.room(length + 1):,}; give a longer text or lower evaluation.window_tokens"
        )
    return windows


def _write_logits(
    model: LayerwisePhi3, states: list[Tensor], paths: list[Path], report: Report, item: str
) -> Sequence[Logits]:
    """Write the logits [W, T, V] of `states` into mapped files and return them."""
    vocabulary = model.config.vocab_size
    stored = [
        np.lib.format.open_memmap(
            path, mode="w+", dtype=np.float32, shape=(*states[0].shape[:2], vocabulary)
        )
        for path in paths
    ]
    for first, rows in model.head():
        report.stage("logits", first / vocabulary, item)
        for hidden, logits in zip(states, stored, strict=True):
            out = torch.from_numpy(logits)[..., first : first + len(rows)]
            for batch, place in zip(in_batches(hidden), in_batches(out), strict=True):
                torch.mm(batch.flatten(0, 1), rows.T, out=place.view(-1, len(rows)))
    for logits in stored:
        logits.flush()
    return stored


def _perplexity(logits: Logits, windows: Windows) -> float:
    """Return the perplexity over all windows. Raises WorkerError if a logit is not finite."""
    surprise = np.empty((len(windows), windows.shape[1] - 1))
    for number, window in enumerate(windows):
        for row in range(0, len(surprise[number]), SOFTMAX_ROWS):
            rows = log_softmax(logits[number, row : row + SOFTMAX_ROWS])
            targets = window[row + 1 : row + 1 + len(rows), None]
            chosen = np.take_along_axis(rows, targets, -1)[:, 0]
            surprise[number, row : row + SOFTMAX_ROWS] = -chosen
    if not np.isfinite(surprise).all():
        raise WorkerError("the original's own logits hold NaN or infinity in fp32")
    return float(np.exp(surprise.mean()))
