"""When an artifact has been judged enough. Standard library only.

Windows come in an order in which the first few already lie all over the text, and judging stops
after the first that decides all limits, or makes the figure precise. A comparison with a baseline
is decided by the windows that both were judged on; precision does not stop it before that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, TypedDict

from phibuild.worker.pairing import Window, common_windows, mean_and_error

LEAST_WINDOWS = 4
"""Windows that are judged in any case: fewer say nothing of how far they differ."""
ERRORS = 4
"""Standard errors between a figure and a limit that it is sure to keep, or to miss."""
PRECISE = 0.05
"""Standard error of the mean KL, by the mean, from which on it is known well enough."""
NEGLIGIBLE = 1e-6
"""Mean KL, in nats, below which nothing is worse than anything else: runtimes round differently
from one machine to the next. The tightest gate of the shipped recipes is as low."""
_RESOLUTION = 1e-9  # of KL, in nats: metrics.py
_FIGURES = {"kl": ("kl_mean", "kl_error"), "top1": ("top1", "top1_error")}

Limits = Mapping[str, Sequence[float]]
"""Limits of gates, by their names: kl, top1."""
Stopped = Literal["gates", "precision", "all"]


class Compared(TypedDict):
    """A gate that compares with a baseline: `figure` is to be `factor` times the baseline's and
    `margin` more at most (top1: at least). `limit` is what that is for the baseline's mean over all
    its `windows`."""

    figure: Literal["kl", "top1"]
    factor: float
    margin: float
    limit: float
    windows: list[Window]


def spread(count: int) -> Iterator[int]:
    """Yield 0 to count - 1 so that the first of them are spread over all: their bits in reverse
    (van der Corput 1935)."""
    width = max(count - 1, 0).bit_length()
    for number in range(1 << width):
        place = int(f"{number:0{width}b}"[::-1], 2) if width else 0
        if place < count:
            yield place


def enough(
    figures: Mapping[str, float | int | None],
    limits: Limits,
    judged: Sequence[Window] = (),
    comparisons: Sequence[Compared] = (),
) -> Stopped | None:
    """Return why no more windows are needed; None if they are. `figures` are those of
    `Comparison.summary`, `judged` the windows behind them."""
    windows = figures["windows"]
    kl, error = figures["kl_mean"], figures["kl_error"]
    if windows is None or windows < LEAST_WINDOWS or kl is None or error is None:
        return None
    compared = [_compare(one, figures, judged) for one in comparisons]
    if "open" in compared:
        return None
    if error <= max(PRECISE * kl, _RESOLUTION):
        return "precision"
    distances = [
        _distance(figures, name, limit) for name in _FIGURES for limit in limits.get(name, ())
    ]
    if "undecided" in compared or min(distances, default=1.0) <= 0:
        return None
    return "gates" if distances or compared else None


def _distance(figures: Mapping[str, float | int | None], name: str, limit: float) -> float:
    """Return how far a figure is from a limit, beyond what its error allows."""
    value, error = _FIGURES[name]
    return abs(limit - (figures[value] or 0)) - ERRORS * (figures[error] or 0)


def _compare(
    one: Compared, figures: Mapping[str, float | int | None], judged: Sequence[Window]
) -> Literal["open", "decided", "undecided"]:
    """Return whether a comparison is decided; undecided: more windows would not help."""
    name = one["figure"]
    if name == "kl":
        most = (figures["kl_mean"] or 0) + ERRORS * (figures["kl_error"] or 0)
        if most < NEGLIGIBLE:
            return "decided"
    own = {window["window"]: window for window in judged}
    other = {window["window"]: window for window in one["windows"]}
    common = common_windows(
        {number: window["reference_nll"] for number, window in own.items()},
        {number: window["reference_nll"] for number, window in other.items()},
    )
    left = other.keys() - own.keys()
    if len(common) >= LEAST_WINDOWS:
        mean, error = mean_and_error(
            [own[n][name] - one["factor"] * other[n][name] - one["margin"] for n in common]
        )
        if abs(mean) > ERRORS * (error or 0):
            return "decided"
        return "open" if left else "undecided"
    if left and len(common) == len(own.keys() & other.keys()) > 0:
        return "open"  # the same text so far, of which there is more
    # Of another text, or nothing is known of the baseline's windows: by both means, then, as far as
    # there are windows.
    return "decided" if _distance(figures, name, one["limit"]) > 0 else "open"
