"""Casts between float types against numpy's own, and nibbles."""

from __future__ import annotations

import numpy as np
import pytest

from phibuild.worker.floats import NUMPY_TYPES, cast, pack_nibbles, widen

BITS = np.arange(1 << 16, dtype=np.uint32)
WIDE = (BITS << 16).view(np.float32)
EVERY = BITS.astype(np.uint16)


def test_a_bfloat16_is_the_upper_half_of_a_float32() -> None:
    assert widen(EVERY, "BF16").tobytes() == WIDE.tobytes()
    assert (
        cast(WIDE, "F32", "BF16")[np.isfinite(WIDE)].tolist() == EVERY[np.isfinite(WIDE)].tolist()
    )


@pytest.mark.parametrize("shift", range(8))
def test_every_bfloat16_becomes_the_nearest_float16(shift: int) -> None:
    """Normal, denormal, beyond the range, infinity, NaN; wherever they stand."""
    with np.errstate(over="ignore", invalid="ignore"):
        expected = WIDE.astype(np.float16)
    found = cast(np.roll(EVERY, shift).reshape(-1, 64), "BF16", "F16")
    assert found.shape == (1024, 64)
    assert np.roll(found.reshape(-1), -shift).tobytes() == expected.tobytes()


def test_halfway_between_two_bfloat16s_is_the_even_one() -> None:
    wide = ((BITS[:1000] << 16) | 0x8000).view(np.float32)
    assert cast(wide, "F32", "BF16").tolist() == [number + number % 2 for number in range(1000)]


@pytest.mark.parametrize("dtype", NUMPY_TYPES)
def test_what_is_not_cast_is_not_copied(dtype: str) -> None:
    values = np.zeros(4, NUMPY_TYPES[dtype])
    assert cast(values, dtype, dtype) is values


def test_what_a_float16_cannot_hold_becomes_infinite() -> None:
    wide = np.array([65519.0, 65520.0, -1e9], np.float32)
    assert cast(wide, "F32", "F16").tolist() == [65504.0, np.inf, -np.inf]


def test_the_first_of_two_nibbles_is_the_lower_half() -> None:
    codes = np.array([[1, 2, 15, 0], [0, 15, 7, 8]], np.uint8)
    assert pack_nibbles(codes).tolist() == [[0x21, 0x0F], [0xF0, 0x87]]
