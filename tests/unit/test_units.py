"""Sizes: what people write, bytes, and back."""

from __future__ import annotations

import contextlib
import pickle
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phibuild.errors import Place
from phibuild.units import (
    Amount,
    format_decimal,
    format_duration,
    parse_size,
    with_decimal,
    written,
)

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
    """Rounded to three digits: within half a unit of the last of them."""
    assert abs(parse_size(format_decimal(size).replace(",", "")) - size) <= 0.005 * size


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
    ("size", "shown"),
    [
        (0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (9_994, "9.99 kB"), (9_996, "10.0 kB"),
        (99_960, "100 kB"), (999_600, "1.00 MB"), (2_282_000_000, "2.28 GB"),
        (63_990_000_000, "64.0 GB"), (1_234_000_000_000, "1,234 GB"),
    ],
)  # fmt: skip
def test_decimal_sizes_have_three_digits(size: int, shown: str) -> None:
    assert format_decimal(size) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [("4 GiB", "4 GiB"), ("4GiB", "4GiB"), ("5.5 GB", "5.5 GB"), ("4294967296", "4.29 GB")],
)
def test_a_budget_is_shown_as_it_was_written(text: str, shown: str) -> None:
    size = Amount(parse_size(text), text)
    assert written(size) == shown
    assert size == parse_size(text)
    copy = pickle.loads(pickle.dumps(size))  # as the plan of a Slurm job is
    assert (copy, written(copy)) == (size, shown)


def test_what_nobody_wrote_is_shown_in_decimal_units() -> None:
    assert written(5 * 2**30) == "5.37 GB"


def test_a_size_of_powers_of_two_is_shown_beside_decimal_ones() -> None:
    assert with_decimal("4 GiB", 4 << 30) == "4 GiB (4.29 GB)"
    assert with_decimal("512mib", 512 << 20) == "512mib (537 MB)"
    assert with_decimal("6 GB", 6 * 10**9) == "6 GB"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-1, "0.0 s"), (0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.4, "59 s"),
        (59.6, "1 min 00 s"), (200, "3 min 20 s"), (3599.4, "59 min 59 s"),
        (3599.6, "1 h 00 min"), (7500, "2 h 05 min"), (100_000, "27 h 47 min"),
    ],
)  # fmt: skip
def test_durations(seconds: float, shown: str) -> None:
    assert format_duration(seconds) == shown


def test_what_knows_its_text_or_place_keeps_it_in_a_job() -> None:
    """Slurm's jobs get their plan as a pickle."""
    place = pickle.loads(pickle.dumps(Place("recipes/mine.yaml", 3, 7)))
    assert (place, place.file, place.line, place.column) == (
        "recipes/mine.yaml:3", "recipes/mine.yaml", 3, 7,
    )  # fmt: skip
    amount = pickle.loads(pickle.dumps(Amount(4 << 30, "4 GiB")))
    assert (amount, amount.written) == (4 << 30, "4 GiB")
