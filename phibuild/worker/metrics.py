"""How far an artifact's predictions are from the original's. numpy only; runs in every toolchain.

KL(P || Q) = sum_v P(v) (ln P(v) - ln Q(v)) per position, P the fp32 original, Q the artifact, in
nats (Kullback and Leibler 1951). Perplexity = exp(mean of -ln p(next token)). With logits a and b,
it is sum_v P(v) (a(v) - b(v)) - ln sum exp a + ln sum exp b: two exponentials for each pair.

Tokens of one window depend on each other, windows hardly do: standard errors are those of the mean
over windows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from phibuild.worker.pairing import mean_and_error

Floats = NDArray[np.floating]
Numbers = NDArray[np.float64]
# Logits are float32: their rounding alone moves ln p by about 1e-6 and the mean KL by up to about
# 1e-10, in either direction. Below this the figure says nothing of the weights.
RESOLUTION = 1e-9
_BLOCK = 1 << 17
"""Logits that are widened to float64 at a time: a core's cache holds them, and memory is not asked
for anew, which takes more time than the sums."""


def log_softmax(logits: Floats) -> Numbers:
    """Return ln softmax over the last axis in float64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    result: Numbers = wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return result


def divergence(reference: Floats, logits: Floats) -> Numbers:
    """Return KL(reference || logits) of each row of two [T, V] logits, in nats."""
    return _compare(reference, logits).kl


@dataclass
class _Rows:
    """Of each row [T]: the divergence, and the logarithms of the sums of both sides' exponentials,
    logits being less their largest one where they are near infinity."""

    kl: Numbers
    reference: Numbers
    logits: Numbers


def _compare(reference: Floats, logits: Floats) -> _Rows:
    count, vocabulary = reference.shape
    found = _Rows(*(np.empty(count) for _ in range(3)))
    step = max(1, _BLOCK // vocabulary)
    powers, room = np.empty((2, step, vocabulary))
    for start in range(0, count, step):
        rows = slice(start, min(start + step, count))
        a, b = reference[rows], logits[rows]
        p, differences = powers[: len(a)], room[: len(a)]
        sums = _exponentials(a, p, found.reference[rows])
        np.subtract(a, b, out=differences, dtype=np.float64)
        differences *= p
        found.kl[rows] = differences.sum(axis=-1) / sums - found.reference[rows]
        _exponentials(b, differences, found.logits[rows])
        found.kl[rows] += found.logits[rows]
    return found


def _exponentials(logits: Floats, out: Numbers, logarithms: Numbers) -> Numbers:
    """Fill `out` with exp of logits less their row's largest; return the sums of it, and fill
    `logarithms` with those of the sums of exp of the logits themselves."""
    largest = logits.max(axis=-1, keepdims=True)
    np.subtract(logits, largest, out=out, dtype=np.float64)
    np.exp(out, out=out)
    sums: Numbers = out.sum(axis=-1)
    np.log(sums, out=logarithms)
    logarithms += largest[:, 0]
    return sums


@dataclass
class Comparison:
    """Running comparison of one artifact with the original, window by window."""

    _kl: list[Numbers] = field(default_factory=list)
    _agree: list[NDArray[np.bool_]] = field(default_factory=list)
    _nll: list[Numbers] = field(default_factory=list)
    _reference_nll: list[Numbers] = field(default_factory=list)

    def add(self, reference: Floats, logits: Floats, targets: NDArray[np.integer]) -> None:
        """Add a window: logits [T, V] of both over the same tokens, and the T tokens that follow.

        Raises ValueError if the shapes differ or the artifact's logits are not finite.
        """
        if logits.shape != reference.shape:
            raise ValueError(f"logits of shape {logits.shape}, the original's {reference.shape}")
        if not (np.isfinite(logits.max()) and np.isfinite(logits.min())):
            raise ValueError("the artifact's logits hold NaN or infinity")
        rows = _compare(reference, logits)
        at = np.arange(len(targets)), targets
        self._kl.append(np.maximum(rows.kl, 0.0))  # rounding can leave -1e-14
        self._agree.append(reference.argmax(axis=-1) == logits.argmax(axis=-1))
        self._nll.append(rows.logits - logits[at])
        self._reference_nll.append(rows.reference - reference[at])

    def summary(self) -> dict[str, float | int | None]:
        """Return kl_mean, kl_p99 (nats), top1 (share), perplexity of both, the artifact's over the
        original's less 1 (perplexity_change), number of tokens and of windows; the standard errors
        of kl_mean, top1 and perplexity_change over windows, paired with the original's where both
        are of one window, None of one alone.

        A mean KL below `RESOLUTION` is given as 0.
        """
        kl = np.concatenate(self._kl)
        mean = float(kl.mean())
        change = [
            artifact - own for artifact, own in zip(self._nll, self._reference_nll, strict=True)
        ]
        ratio = float(np.exp(np.concatenate(change).mean()))
        change_error = standard_error(change)
        return {
            "kl_mean": mean if mean >= RESOLUTION else 0.0,
            "kl_error": standard_error(self._kl),
            "kl_p99": float(np.percentile(kl, 99)),
            "top1": float(np.concatenate(self._agree).mean()),
            "top1_error": standard_error(self._agree),
            "perplexity": float(np.exp(np.concatenate(self._nll).mean())),
            "reference_perplexity": float(np.exp(np.concatenate(self._reference_nll).mean())),
            "perplexity_change": ratio - 1,
            "perplexity_change_error": None if change_error is None else ratio * change_error,
            "tokens": int(kl.size),
            "windows": len(self._kl),
        }

    def by_window(self) -> list[dict[str, float]]:
        """Return of each window, in the order of `add`, the means over its positions: kl (nats),
        top1 (share), nll and reference_nll (-ln p of the next token, the artifact's and the
        original's)."""
        names = ("kl", "top1", "nll", "reference_nll")
        windows = zip(self._kl, self._agree, self._nll, self._reference_nll, strict=True)
        return [
            {name: float(rows.mean()) for name, rows in zip(names, window, strict=True)}
            for window in windows
        ]

    def by_position(self, parts: int) -> list[dict[str, float | int]]:
        """Return the mean KL (nats) of `parts` equal stretches of the windows, with the first
        position of each and the one after its last; fewer where windows are shorter than that."""
        kl = np.stack(self._kl).mean(axis=0)
        bounds = np.unique(np.linspace(0, len(kl), parts + 1).astype(int)).tolist()
        return [
            {"start": start, "end": end, "kl": float(kl[start:end].mean())}
            for start, end in pairwise(bounds)
        ]


def standard_error(windows: list[NDArray[np.float64]] | list[NDArray[np.bool_]]) -> float | None:
    """Return that of the mean over windows, by their means: s / sqrt(W); None for one window."""
    return mean_and_error([float(window.mean()) for window in windows])[1]
