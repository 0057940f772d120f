"""Compile functions of numpy arrays with numba, in float32 as written; the room they work in.

No fast-math: operations stay in their order and are not fused. The interpreter's lock is released.

ggml searches the scale of each sub-block by trying some twenty of them over its 16 or 32 weights,
one sub-block after the other; each sum waits for the one before it. Here LANES sub-blocks are
searched at once, a vector register holding the same weight of several: every sub-block has its
operations in ggml's order, in float32 without fused multiply-add, so that all results have the same
bits, and the vector units are busy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias, TypeVar

import numba
import numpy as np
from numba.core.compiler import Compiler
from numba.core.compiler_machinery import PassManager
from numpy.typing import NDArray

if numba.config.DISABLE_JIT:
    raise ImportError("NUMBA_DISABLE_JIT is set: numba compiles nothing")

Function = TypeVar("Function", bound=Callable[..., object])

LANES = 64
"""Sub-blocks that are searched at once: 64 float32 are 4 to 16 vector registers."""
Lanes: TypeAlias = NDArray[np.float32]
"""A number of each of LANES sub-blocks [LANES], or as many as they have weights [size, LANES]."""
SMALLEST = np.float32(1e-15)
"""GROUP_MAX_EPS: where no weight is larger, all are zero to ggml."""
_LINE = 16  # float32 of a cache line
_MAGIC = np.float32(12582912)  # 1.5 * 2^23: the last bit of the sum is worth 1


class _Apart(Compiler):  # type: ignore[misc]  # numba has no types
    """numba's compiler, with the promise of `phase`, for which its decorator has no word."""

    def define_pipelines(self) -> list[PassManager]:
        self.state.flags.noalias = True
        self.state.flags.no_cpython_wrapper = True
        self.state.flags.no_cfunc_wrapper = True
        passes: list[PassManager] = super().define_pipelines()
        return passes


def compiled(function: Function) -> Function:
    """Compile at the first call, for the types of its arguments."""
    result: Function = numba.njit(nogil=True, error_model="numpy")(function)
    return result


def phase(function: Function) -> Function:
    """Compile a part of another function, to be called with arrays that do not overlap: what it
    writes to one is then known not to change another, and the loops need no checks for that."""
    result: Function = numba.njit(nogil=True, error_model="numpy", pipeline_class=_Apart)(function)
    return result


@compiled
def nearest(value: np.float32) -> np.int32:
    """Return the nearest int32, ties to even (ggml: `nearest_int`), for |value| < 2^22."""
    bits = np.float32(value + _MAGIC).view(np.int32)
    return (bits & np.int32(0x7FFFFF)) - np.int32(0x400000)


@compiled
def nearest_level(value: np.float32, lowest: np.float32, highest: np.float32) -> np.float32:
    """Return the same as float32, limited."""
    near = (value + _MAGIC) - _MAGIC
    near = highest if near > highest else near
    return lowest if near < lowest else near


@compiled
def lanes(size: int = 1) -> Lanes:
    """Return room for `size` float32 of each lane [size * LANES], on a border of cache lines."""
    # Arrays of their own: slices of one would overlap to the compiler, unless in a `phase`.
    room = np.empty(size * LANES + _LINE, np.float32)
    first = -room.ctypes.data % (4 * _LINE) // 4
    return room[first : first + size * LANES]


@compiled
def rows(size: int) -> Lanes:
    """Return the same as [size, LANES]."""
    return lanes(size).reshape(size, LANES)
