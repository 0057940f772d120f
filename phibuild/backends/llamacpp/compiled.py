"""Compile a function of numpy arrays with numba, in float32 as written.

No fast-math: operations stay in their order and are not fused. The interpreter's lock is released.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np

if numba.config.DISABLE_JIT:
    raise ImportError("NUMBA_DISABLE_JIT is set: numba compiles nothing")

Function = TypeVar("Function", bound=Callable[..., Any])

_MAGIC = np.float32(12582912)  # 1.5 * 2^23: the last bit of the sum is worth 1


def compiled(function: Function) -> Function:
    """Compile at the first call, for the types of its arguments."""
    result: Function = numba.njit(nogil=True, error_model="numpy")(function)
    return result


@compiled
def nearest(value: Any) -> Any:
    """Return the nearest int32, ties to even (ggml: `nearest_int`), for |value| < 2^22."""
    bits = np.float32(value + _MAGIC).view(np.int32)
    return (bits & np.int32(0x7FFFFF)) - np.int32(0x400000)


@compiled
def nearest_level(value: Any, lowest: Any, highest: Any) -> Any:
    """Return the same as float32, limited."""
    near = (value + _MAGIC) - _MAGIC
    near = highest if near > highest else near
    return lowest if near < lowest else near
