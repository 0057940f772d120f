"""Two artifacts that were judged on the same text, window by window. Standard library only.

Windows of one text differ far more than artifacts do: what two artifacts lose on the same window
goes up and down together, and the mean of the differences is known much better than either mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypedDict

SAME_TEXT = 1e-4
"""Nats by which the original's loss on one window may differ where it was computed twice."""


class Window(TypedDict):
    """A window that was judged: its number, means over its positions as in metrics.py."""

    window: int
    kl: float
    top1: float
    reference_nll: float


def common_windows(one: Mapping[int, float], other: Mapping[int, float]) -> list[int]:
    """Return the numbers of the windows that two judgings have in common: those of the same number
    on which the original lost the same. Both are number -> reference_nll."""
    return [
        number
        for number, loss in one.items()
        if number in other and abs(other[number] - loss) <= SAME_TEXT
    ]


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean of one value or more and its standard error, None of one alone."""
    count = len(values)
    mean = math.fsum(values) / count
    if count < 2:
        return mean, None
    squares = math.fsum((value - mean) ** 2 for value in values)
    return mean, math.sqrt(squares / (count - 1) / count)
