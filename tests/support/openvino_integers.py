"""Quantize matrices by nncf and by phibuild; runs in the vendor's environment.

`python openvino_integers.py` prints a JSON list of the cases [weights, dtype, mode, group size,
part] whose bytes differ, after the number of cases. Most are weights that no trained model has:
what a random one never tries.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # sends nothing then
import openvino as ov  # noqa: E402
from nncf import CompressWeightsMode  # noqa: E402
from nncf.quantization.algorithms.weight_compression.config import (  # noqa: E402
    WeightCompressionConfig,
)
from nncf.quantization.algorithms.weight_compression.weight_lowering import (  # noqa: E402
    compress_weight,
)
from nncf.tensor import Tensor  # noqa: E402
from openvino import opset13 as opset  # noqa: E402

from phibuild.backends.openvino.encode import encode  # noqa: E402
from phibuild.backends.openvino.layout import Encoding  # noqa: E402
from phibuild.worker.rows import Rows  # noqa: E402

SHAPE = (128, 256)  # nncf takes another way below 10,000 weights
CASES = (
    ("int4_asym", 64), ("int4_asym", 32), ("int4_asym", -1), ("int4_sym", 128), ("int4_sym", -1),
    ("int8_asym", -1), ("int8_sym", -1),
)  # fmt: skip
TYPES = {"BF16": ov.Type.bf16, "F16": ov.Type.f16, "F32": ov.Type.f32}


def weights() -> Iterator[tuple[str, Any]]:
    random = np.random.default_rng(0)
    normal = random.standard_normal(SHAPE)
    yield "normal", 0.02 * normal
    yield "zero", np.zeros(SHAPE)
    yield "constant", np.ones(SHAPE)
    yield "negative", -np.abs(normal)
    yield "positive", np.abs(normal)
    yield "scales below fp16's normal range", 1e-4 * normal
    yield "scales below float32's epsilon", 1e-8 * normal
    yield "denormal", 1e-40 * normal
    yield "large", 1e4 * normal
    yield "heavy tails", 0.01 * random.standard_t(1.5, SHAPE)
    yield "ties", 0.5 * random.integers(-15, 16, SHAPE)
    yield "sparse", np.where(random.random(SHAPE) < 0.99, 0, normal)
    yield "all magnitudes", np.exp(random.uniform(-30, 8, SHAPE)) * np.sign(normal)
    for number in range(20):
        scale, shift = 10 ** random.uniform(-4, 1), 0.05 * random.standard_normal()
        yield f"random {number}", scale * random.standard_normal(SHAPE) + shift


def stored(values: Any, dtype: str) -> Any:
    wide = values.astype(np.float32)
    if dtype == "BF16":
        return (wide.view(np.uint32) >> 16).astype(np.uint16)
    return np.clip(wide, -6e4, 6e4).astype(np.float16) if dtype == "F16" else wide


def by_nncf(tensor: ov.Tensor, mode: str, group_size: int) -> list[Any]:
    """Return the constants that nncf puts into a graph: weights, zero points, scales."""
    config = WeightCompressionConfig(mode=CompressWeightsMode(mode), group_size=group_size)
    compressed = compress_weight(Tensor(tensor), (1,), config)
    kind = f"{'u' if mode.endswith('_asym') else 'i'}{mode[3]}"
    parts = [(compressed.tensor, kind), (compressed.zero_point, kind), (compressed.scale, "f16")]
    return [
        opset.constant(part.data, shared_memory=True)
        if isinstance(part.data, ov.Tensor)
        else opset.constant(part.data, dtype=getattr(ov.Type, kind))
        for part, kind in parts
        if part is not None
    ]


def main() -> None:
    warnings.simplefilter("ignore")  # of scales that are rounded to infinity
    count, different = 0, []
    for name, values in weights():
        for dtype, kind in TYPES.items():
            items = stored(values, dtype)
            tensor = ov.Tensor(items, ov.Shape(SHAPE), kind)
            for mode, group_size in CASES:
                how = Encoding(f"{'u' if mode.endswith('_asym') else 'i'}{mode[3]}", group_size)
                ours = encode(Rows(name, dtype, items), how)
                theirs = by_nncf(tensor, mode, group_size)
                parts = how.parts(SHAPE)
                for part, mine, constant in zip(parts, ours, theirs, strict=True):
                    same = tuple(constant.get_output_shape(0)) == part.shape
                    same &= mine.tobytes() == np.array(constant.data).tobytes()
                    if not same:
                        different.append([name, dtype, mode, group_size, part.suffix])
                    count += 1
    print(json.dumps([count, different]))


if __name__ == "__main__":
    main()
