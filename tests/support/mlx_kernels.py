"""Compare phibuild's numpy kernels for MLX with MLX's own, bit for bit; runs in mlx's toolchain.

`python mlx_kernels.py` prints what differs, one line each, and nothing if all agree.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
WIDTH = 384  # three groups of 128


def hard_weights() -> dict[str, Floats]:
    """Return matrices [n, WIDTH] that meet each branch of the quantization."""
    random = np.random.default_rng(0)
    normal = random.standard_normal((400, WIDTH)).astype(np.float32)
    whole = random.integers(-8, 8, (50, WIDTH)).astype(np.float32)
    one = np.zeros((50, WIDTH), np.float32)
    one[:, ::128] = normal[:50, :3]
    return {
        "normal": normal * np.float32(0.02),
        "zero": np.zeros((2, WIDTH), np.float32),
        "negative zero": np.negative(np.zeros((2, WIDTH), np.float32)),
        "equal": np.repeat(normal[:50, :3], 128, axis=1),
        "one of a group": one,
        "whole numbers: ties": whole,
        "halves: ties": whole / 2,
        "15 steps of a power of two: ties": random.integers(0, 31, (50, WIDTH)) / np.float32(64),
        "positive": np.abs(normal),
        "negative": -np.abs(normal),
        "opposite extremes": np.clip(normal, -1, 1),
        "tiny": normal * np.float32(1e-7),
        "denormal": normal * np.float32(1e-40),
        "large": normal * np.float32(1e4),
        "near float16's largest": np.clip(normal * np.float32(6e4), -65504, 65504),
    }


def main() -> None:
    for line in (*casts(), *quantization()):
        print(line)


def casts() -> Iterator[str]:
    import mlx.core as mx

    from phibuild.worker.floats import NUMPY_TYPES, cast

    types = {"BF16": mx.bfloat16, "F16": mx.float16, "F32": mx.float32}
    shorts = np.arange(1 << 16, dtype=np.uint32)
    random = np.random.default_rng(1).integers(0, 1 << 32, 1 << 20, dtype=np.uint32)
    # Every bfloat16, every float16, what lies halfway between two, and numbers at random.
    every = [shorts << 16, (shorts << 16) | 0x8000, (shorts << 16) | 0x7FFF, random]
    halves = shorts.astype(np.uint16).view(np.float16).astype(np.float32)
    with np.errstate(invalid="ignore"):
        between = (halves[:-1] + halves[1:]) / 2
    wide = np.concatenate([bits.view(np.float32) for bits in every] + [halves, between])
    wide = wide[np.isfinite(wide)]
    for source in types:
        values = cast(wide, "F32", source)
        array = mx.array(values)
        array = array.view(mx.bfloat16) if source == "BF16" else array
        for target in types:
            theirs = array.astype(types[target])
            theirs = theirs.view(mx.uint16) if target == "BF16" else theirs
            mine = cast(values, source, target)
            assert mine.dtype == NUMPY_TYPES[target]
            if mine.tobytes() != np.array(theirs).tobytes():
                yield f"cast {source} to {target}"


def quantization() -> Iterator[str]:
    import mlx.core as mx

    from phibuild.backends.mlx.affine import Groups
    from phibuild.backends.mlx.packing import unpack
    from phibuild.worker.floats import cast

    types: dict[str, Any] = {"BF16": mx.bfloat16, "F16": mx.float16, "F32": mx.float32}
    for name, weights in hard_weights().items():
        for dtype in types:
            values = np.ascontiguousarray(cast(weights.astype(np.float32), "F32", dtype))
            array = mx.array(values)
            array = array.view(mx.bfloat16) if dtype == "BF16" else array
            for group in (32, 64, 128):
                groups = Groups(values, dtype, group)
                for bits in (2, 3, 4, 5, 6, 8):
                    packed, scales, biases = groups.quantize(bits)
                    own = (packed, cast(scales, "F32", dtype), cast(biases, "F32", dtype))
                    theirs = mx.quantize(array, group_size=group, bits=bits, stream=mx.cpu)
                    raw = [np.array(part.view(mx.uint8)) for part in theirs]
                    if any(a.tobytes() != b.tobytes() for a, b in zip(own, raw, strict=True)):
                        yield f"{name}, {dtype}, groups of {group}, {bits} bits"
                    codes = unpack(raw[0], bits)
                    ones = mx.ones(theirs[1].shape)
                    plain = mx.dequantize(
                        theirs[0], ones, 0 * ones, group_size=group, bits=bits, stream=mx.cpu
                    )
                    if not (np.array(plain) == codes).all():
                        yield f"unpacking {bits} bits"


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    main()
