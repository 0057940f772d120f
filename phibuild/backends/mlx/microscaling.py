"""OCP microscaling types (mxfp4, mxfp8), by MLX's own kernels."""

from __future__ import annotations

import threading

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from phibuild.worker.floats import AnyFloats

_local = threading.local()


def microscale(
    weights: AnyFloats, dtype: str, group_size: int, bits: int, mode: str
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the packed bytes and the E8M0 scales of a matrix of safetensors type `dtype`."""
    if not hasattr(_local, "stream"):
        # A stream belongs to the thread that made it. The CPU's kernels give the same bytes on
        # every machine. Freed buffers go back: those of many sizes would pile up.
        _local.stream = mx.new_stream(mx.cpu)
        mx.set_cache_limit(0)
    array = mx.array(weights)
    if dtype == "BF16":  # numpy has no such type
        array = array.view(mx.bfloat16, stream=_local.stream)
    packed, scales = mx.quantize(
        array, group_size=group_size, bits=bits, mode=mode, stream=_local.stream
    )
    mx.eval(packed, scales)
    return np.array(packed).view(np.uint8), np.array(scales)
