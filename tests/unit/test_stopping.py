"""When judging stops: at the first window that decides everything, never before the fourth."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phibuild.worker.pairing import Window, common_windows, mean_and_error
from phibuild.worker.stopping import LEAST_WINDOWS, Compared, enough, spread


@given(st.integers(0, 300))
def test_all_windows_come_once(count: int) -> None:
    assert sorted(spread(count)) == list(range(count))


@given(st.integers(8, 300), st.integers(1, 6))
def test_the_first_windows_lie_all_over_the_text(count: int, power: int) -> None:
    first = 1 << power
    if first > count:
        return
    cut = sorted(list(spread(count))[:first])
    gaps = [after - before for before, after in zip(cut, [*cut[1:], count], strict=True)]
    assert max(gaps) <= 4 * math.ceil(count / first)


FIGURES = {"windows": 6, "kl_mean": 0.1, "kl_error": 0.01, "top1": 0.9, "top1_error": 0.01}


@pytest.mark.parametrize(
    ("changed", "limits", "why"),
    [
        ({}, {}, None),
        ({"kl_error": 0.005}, {}, "precision"),
        ({"kl_error": 0.00501}, {}, None),
        ({}, {"kl": [0.15]}, "gates"),
        ({}, {"kl": [0.139]}, None),
        ({}, {"kl": [0.05]}, "gates"),  # it is missed for sure
        ({}, {"kl": [0.15, 0.11]}, None),
        ({}, {"kl": [0.15], "top1": [0.85]}, "gates"),
        ({}, {"kl": [0.15], "top1": [0.87]}, None),
        ({}, {"top1": [0.95]}, "gates"),
        ({"windows": LEAST_WINDOWS - 1, "kl_error": 0.0}, {"kl": [0.15]}, None),
        ({"windows": 1, "kl_error": None}, {"kl": [0.15]}, None),
        ({"kl_mean": 0.0, "kl_error": 1e-10}, {}, "precision"),
        ({"kl_mean": 0.0, "kl_error": 1e-8}, {}, None),
    ],
)
def test_enough(changed: dict[str, float | None], limits: dict[str, list[float]], why: str) -> None:
    assert enough({**FIGURES, **changed}, limits) == why


def windows(losses: list[float], *, text: float = 0.0) -> list[Window]:
    """Return windows of these KL, on a text where the original loses 1 nat and more by window."""
    return [
        {"window": n, "kl": kl, "top1": 0.9, "reference_nll": 1.0 + n / 10 + text}
        for n, kl in enumerate(losses)
    ]


# Windows differ a lot, by a fifth of the loss and more; both artifacts lose alike on each.
BASE = [0.08, 0.12, 0.09, 0.11, 0.10, 0.13, 0.07, 0.10]


def compared(
    losses: list[float], baseline: list[float], factor: float = 1.05, *, text: float = 0.0
) -> str | None:
    """Return why judging stops after some windows, beside a baseline with others."""
    mean, error = mean_and_error(losses)
    figures = {"windows": len(losses), "kl_mean": mean, "kl_error": error, "top1": 0.9,
               "top1_error": 0.01}  # fmt: skip
    one: Compared = {
        "figure": "kl", "factor": factor, "margin": 0.0,
        "limit": factor * mean_and_error(baseline)[0], "windows": windows(baseline, text=text),
    }  # fmt: skip
    return enough(figures, {}, windows(losses), [one])


def test_a_baseline_is_compared_window_by_window() -> None:
    """The same loss on each window is not worse, whatever the windows themselves differ by."""
    slightly = [kl * (1.001 if n % 2 else 0.999) for n, kl in enumerate(BASE)]
    assert compared(slightly[:4], BASE) == "gates"
    worse = [1.2 * kl for kl in slightly]
    assert compared(worse[:4], BASE) == "gates"
    # At the limit itself more windows are wanted, as long as the baseline has any.
    at_it = [1.05 * kl for kl in slightly]
    assert compared(at_it[:4], BASE) is None
    assert compared(at_it[:7], BASE) is None
    assert compared(at_it, BASE) is None  # the loss itself is not precise yet
    precise = [0.1, 0.1001, 0.0999, 0.1, 0.1, 0.1]
    assert compared(precise[:5], [0.1 / 1.05] * 6) is None
    assert compared(precise, [0.1 / 1.05] * 6) == "precision"
    assert compared(precise[:4], [0.09] * 6) == "precision"


def test_a_baseline_of_another_text_is_compared_by_its_mean() -> None:
    assert compared([0.1, 0.101, 0.099, 0.1], [0.3] * 6, text=1.0) == "precision"
    # Not decided yet: the precision of the loss does not stop it before the windows end.
    assert compared([0.1, 0.101, 0.099, 0.1], [0.1 / 1.05] * 6, text=1.0) is None
    assert compared([0.1, 0.101, 0.099, 0.1], [0.3] * 2, text=1.0) == "precision"


def test_a_loss_that_is_next_to_nothing_is_not_worse() -> None:
    assert compared([2e-8, 4e-8, 1e-8, 3e-8], [1e-8] * 8) == "gates"


@given(st.lists(st.floats(0, 10), max_size=30), st.data())
def test_common_windows_are_those_of_one_text(losses: list[float], data: st.DataObject) -> None:
    one = dict(enumerate(losses))
    assert common_windows(one, one) == list(one)
    other = {n: loss + data.draw(st.sampled_from([0.0, 0.001, -0.5])) for n, loss in one.items()}
    assert common_windows(one, other) == [n for n in one if one[n] == other[n]]


def test_a_mean_and_its_error() -> None:
    """s / sqrt(n): of 1, 2, 3, 4 it is sqrt(5 / 3) / 2."""
    assert mean_and_error([1, 2, 3, 4]) == pytest.approx((2.5, math.sqrt(5 / 3) / 2))
    assert mean_and_error([7.0]) == (7.0, None)
