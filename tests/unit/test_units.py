"""Sizes: what people write, bytes, and back."""

from __future__ import annotations

import contextlib
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phibuild.units import format_mb, format_size, parse_size

FACTORS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8 GiB", 8 * 2**30),
        ("8GB", 8 * 10**9),
        ("1.5 GB", 1_500_000_000),
        (" 812 mib ", 812 * 2**20),
        ("0", 0),
        ("4096", 4096),
        (4096, 4096),
        (4096.0, 4096),
        ("9007199254740993", 9007199254740993),  # more than a float holds
    ],
)
def test_sizes_as_people_write_them(text: object, size: int) -> None:
    assert parse_size(text) == size


@given(st.integers(0, 10**6), st.integers(0, 999), st.sampled_from(sorted(FACTORS)))
def test_number_and_unit(whole: int, thousandths: int, unit: str) -> None:
    exact = Fraction(whole * 1000 + thousandths, 1000) * FACTORS[unit]
    assert parse_size(f"{whole}.{thousandths:03d} {unit}") == round(exact)


@given(st.integers(0, 2**63 - 1))
def test_bytes_stay_what_they_are(size: int) -> None:
    assert parse_size(size) == parse_size(str(size)) == parse_size(f"{size} B") == size


@given(st.integers(0, 2**50))
def test_what_is_shown_can_be_read(size: int) -> None:
    """Rounded to two or three digits: within half a percent and half a unit of the last digit."""
    assert abs(parse_size(format_size(size)) - size) <= 0.006 * size


@pytest.mark.parametrize(
    "nonsense",
    ["", "eight GB", "8 GX", "-1", "-8 GiB", "1e9", "8,5 GB", "8 GB GB", "٣ GB", "0x10", ".5 GB",
     -1, 1.5, True, None, [], {}, float("nan"), float("inf"), "9" * 5000],
)  # fmt: skip
def test_nonsense_is_a_value_error(nonsense: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_size(nonsense)


@given(st.text() | st.integers() | st.floats() | st.booleans() | st.none())
def test_anything_is_a_size_or_a_value_error(value: object) -> None:
    with contextlib.suppress(ValueError):
        assert parse_size(value) >= 0


def test_an_unknown_unit_is_named() -> None:
    with pytest.raises(ValueError, match=r"'GX'.*GiB"):
        parse_size("8 GX")


@pytest.mark.parametrize(
    ("size", "text"),
    [(None, "-"), (0, "0.00"), (1_234_567, "1.23"), (98_765_432, "98.8"), (1.5e10, "15,000")],
)
def test_megabytes(size: int | None, text: str) -> None:
    assert format_mb(size) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(None, "-"), (12, "12 B"), (2048, "2.00 KiB"), (6 << 30, "6.00 GiB"), (50 << 20, "50.0 MiB")],
)
def test_sizes_for_people(size: int | None, text: str) -> None:
    assert format_size(size) == text
