"""Student's t: against printed tables, and against what it must be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phibuild.report.diff.student import chance, is_beyond_noise, welch

# Two-sided quantiles as tables have them (NIST/SEMATECH e-Handbook, 1.3.6.7.2).
TABLE = {
    (1, 0.05): 12.706, (1, 0.01): 63.657, (2, 0.05): 4.303, (2, 0.01): 9.925,
    (3, 0.05): 3.182, (3, 0.01): 5.841, (4, 0.01): 4.604, (5, 0.001): 6.869,
    (7, 0.01): 3.499, (10, 0.05): 2.228, (19, 0.01): 2.861, (19, 0.001): 3.883,
    (30, 0.01): 2.750, (79, 0.01): 2.640, (100, 0.01): 2.626,
}  # fmt: skip


@pytest.mark.parametrize(("place", "t"), TABLE.items())
def test_the_table(place: tuple[int, float], t: float) -> None:
    freedom, level = place
    assert chance(t, freedom) == pytest.approx(level, rel=2e-3)
    assert chance(-t, freedom) == chance(t, freedom)


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.integers(1, 400))
def test_what_is_further_away_is_less_by_chance(one: float, other: float, freedom: int) -> None:
    near, far = sorted((one, other))
    assert 0 <= chance(far, freedom) <= chance(near, freedom) + 1e-12 <= 1 + 1e-9


def test_an_exact_difference_is_no_chance_and_none_is_no_difference() -> None:
    assert is_beyond_noise(1e-3, 0.0, 3)
    assert not is_beyond_noise(0.0, 0.0, 3)
    assert not is_beyond_noise(3.18, 1.0, 3)
    assert is_beyond_noise(3.19, 1.0, 3)
    assert not is_beyond_noise(3.18, 1.0, 3.99)
    assert not is_beyond_noise(5.84, 1.0, 3, level=0.01)


def test_welch() -> None:
    """Errors 1 of 5 values and 2 of 10: variance 5, freedom 25 / (1/4 + 16/9) = 12.33."""
    error, freedom = welch(1.0, 5, 2.0, 10)
    assert error == pytest.approx(5**0.5)
    assert freedom == pytest.approx(25 / (1 / 4 + 16 / 9))
    assert welch(0.0, 5, 0.0, 6) == (0.0, 9.0)
