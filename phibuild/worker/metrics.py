"""How far an artifact's predictions are from the original's. numpy only; runs in every toolchain.

KL(P || Q) = sum_v P(v) (ln P(v) - ln Q(v)) per position, P the fp32 original, Q the artifact, in
nats (Kullback and Leibler 1951). Perplexity = exp(mean of -ln p(next token)).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
# Logits are float32: their rounding alone moves ln p by about 1e-6 and the mean KL by up to about
# 1e-10, in either direction. Below this the figure says nothing of the weights.
RESOLUTION = 1e-9
_ROWS = 64  # rows widened to float64 at a time: bounds memory at large vocabularies


def log_softmax(logits: Floats) -> NDArray[np.float64]:
    """Return ln softmax over the last axis in float64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    result: NDArray[np.float64] = wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return result


def divergence(reference: Floats, logits: Floats) -> NDArray[np.float64]:
    """Return KL(reference || logits) of each row of two [T, V] logits, in nats."""
    out = np.empty(len(reference))
    for start in range(0, len(reference), _ROWS):
        rows = slice(start, start + _ROWS)
        p, q = log_softmax(reference[rows]), log_softmax(logits[rows])
        out[rows] = (np.exp(p) * (p - q)).sum(axis=-1)
    return out


@dataclass
class Comparison:
    """Running comparison of one artifact with the original, window by window."""

    _kl: list[NDArray[np.float64]] = field(default_factory=list)
    _agree: list[NDArray[np.bool_]] = field(default_factory=list)
    _nll: list[NDArray[np.float64]] = field(default_factory=list)
    _reference_nll: list[NDArray[np.float64]] = field(default_factory=list)

    def add(self, reference: Floats, logits: Floats, targets: NDArray[np.integer]) -> None:
        """Add a window: logits [T, V] of both over the same tokens, and the T tokens that follow.

        Raises ValueError if the shapes differ or the artifact's logits are not finite.
        """
        if logits.shape != reference.shape:
            raise ValueError(f"logits of shape {logits.shape}, the original's {reference.shape}")
        if not np.isfinite(logits).all():
            raise ValueError("the artifact's logits hold NaN or infinity")
        for start in range(0, len(reference), _ROWS):
            rows = slice(start, start + _ROWS)
            p, q = log_softmax(reference[rows]), log_softmax(logits[rows])
            column = targets[rows, None]
            self._kl.append((np.exp(p) * (p - q)).sum(axis=-1))
            self._agree.append(p.argmax(axis=-1) == q.argmax(axis=-1))
            self._nll.append(-np.take_along_axis(q, column, axis=-1)[:, 0])
            self._reference_nll.append(-np.take_along_axis(p, column, axis=-1)[:, 0])

    def summary(self) -> dict[str, float | int]:
        """Return kl_mean, kl_p99 (nats), top1 (share), perplexity of both, number of tokens.

        A mean KL below `RESOLUTION` is given as 0.
        """
        kl = np.maximum(np.concatenate(self._kl), 0.0)  # rounding can leave -1e-17
        mean = float(kl.mean())
        return {
            "kl_mean": mean if mean >= RESOLUTION else 0.0,
            "kl_p99": float(np.percentile(kl, 99)),
            "top1": float(np.concatenate(self._agree).mean()),
            "perplexity": float(np.exp(np.concatenate(self._nll).mean())),
            "reference_perplexity": float(np.exp(np.concatenate(self._reference_nll).mean())),
            "tokens": int(kl.size),
        }
