"""Casts between the float types of checkpoints and artifacts, rounding to nearest even as MLX does.

An array of a type that numpy lacks (BF16) is held as its bits. numpy only.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BF16_END = 0x4780  # 65536.0, the least bfloat16 that rounds to infinity in float16
# safetensors' name of a float type -> numpy's type of the same size.
NUMPY_TYPES: dict[str, type[np.generic]] = {
    "BF16": np.uint16,
    "F16": np.float16,
    "F32": np.float32,
}


_F16_END = 65520.0  # numbers from here on round to infinity in float16


def fits_float16(values: NDArray[Any], source: str) -> bool:
    """Return whether no finite number of the safetensors type `source` becomes infinite as F16."""
    if source == "BF16":
        magnitude = values & np.uint16(0x7FFF)
        return not bool(((magnitude >= _BF16_END) & (magnitude < 0x7F80)).any())
    if source == "F32":
        magnitude = np.abs(values)
        return not bool(((magnitude >= _F16_END) & np.isfinite(magnitude)).any())
    return True


def is_finite(values: NDArray[Any], dtype: str) -> bool:
    """Return whether all numbers of the safetensors type `dtype` are finite."""
    if dtype == "BF16":
        return int((values & np.uint16(0x7FFF)).max(initial=0)) < 0x7F80
    return bool(np.isfinite(values).all())


def cast(values: NDArray[Any], source: str, target: str) -> NDArray[Any]:
    """Return `values` of the safetensors type `source` as `target` (F32, F16 or BF16); a float16
    overflow becomes infinity."""
    if source == target:
        return values
    if (source, target) == ("BF16", "F16"):
        return np.take(_half_of_bfloat(), values, mode="clip")  # thrice as fast as arithmetic
    wide: NDArray[np.float32] = (
        np.left_shift(values, 16, dtype=np.uint32).view(np.float32)
        if source == "BF16"
        else values.astype(np.float32, copy=False)
    )
    if target == "F32":
        return wide
    if target == "F16":
        with np.errstate(over="ignore"):
            return wide.astype(np.float16)
    bits = wide.view(np.uint32)
    return ((bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16).astype(np.uint16)


@cache
def _half_of_bfloat() -> NDArray[np.float16]:
    """Return the float16 nearest to each of the 65,536 bfloat16 numbers."""
    every = np.arange(1 << 16, dtype=np.uint16)
    with np.errstate(over="ignore", invalid="ignore"):
        return cast(every, "BF16", "F32").astype(np.float16)
