"""Integers and halves of the openvino backend, by hand and against NumPy's own rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from phibuild.backends.openvino.encode import encode
from phibuild.backends.openvino.layout import Encoding, encoding
from phibuild.worker.floats import widen
from phibuild.worker.protocol import WorkerError
from phibuild.worker.rows import Rows, to_float16


def rows(values: Any, dtype: str = "F32") -> Rows:
    return Rows("layer", dtype, np.asarray(values, np.float32))


def test_int4_with_zero_points_by_hand() -> None:
    """Range -1 to 2: steps of 0.2, zero at level 5; the first of a pair in the lower half."""
    codes, zero_point, scale = encode(rows([[-1, 0, 0.21, 2], [0, 0, 0, 3]]), Encoding("u4", 4))
    assert codes.tolist() == [0 | 5 << 4, 6 | 15 << 4, 0, 15 << 4]
    assert zero_point.tolist() == [5 | 0 << 4]
    assert scale.tolist() == [np.float16(0.2), np.float16(0.2)]


def test_symmetric_scales_take_the_sign_that_gives_the_largest_weight_its_level() -> None:
    codes, scale = encode(rows([[-8, 7, 1, 0], [4, -2, 1, 0]]), Encoding("i4"))
    assert scale.tolist() == [1.0, -0.5]
    assert codes.tolist() == [8 | 7 << 4, 1, 8 | 4 << 4, 14]  # -8 7 1 0, -8 4 -2 0


def test_int8_by_hand() -> None:
    codes, zero_point, scale = encode(rows([[-1, 0, 0.5, 4.1]]), Encoding("u8"))
    assert zero_point.tolist() == [50]
    assert codes.tolist() == [0, 50, 75, 255]
    assert scale.tolist() == [np.float16(5.1 / 255)]
    codes, scale = encode(rows([[-128, 127, 0.5, 1.5]]), Encoding("i8"))
    assert codes.view(np.int8).tolist() == [-128, 127, 0, 2]  # half to even
    assert scale.tolist() == [1.0]


@pytest.mark.parametrize("value", [0.0, 1e-30])
def test_groups_of_almost_nothing_have_a_scale(value: float) -> None:
    for stored in (Encoding("u4", 32), Encoding("i4"), Encoding("u8"), Encoding("i8")):
        *_, scale = encode(rows(np.full((2, 64), value)), stored)
        assert (scale > 0).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e9])
def test_weights_without_a_scale_are_refused(value: float) -> None:
    weights = np.ones((2, 64), np.float32)
    weights[1, 3] = value
    for stored in (Encoding("u4", 32), Encoding("i4"), Encoding("u8"), Encoding("i8")):
        with pytest.raises(WorkerError, match="tensor layer holds weights that are not finite"):
            encode(Rows("layer", "F32", weights), stored)


def test_each_row_is_worked_out_by_itself() -> None:
    weights = np.random.default_rng(0).standard_normal((6, 96)).astype(np.float32)
    for stored in (Encoding("u4", 32), Encoding("i4"), Encoding("u8"), Encoding("f16")):
        pieces = [encode(rows(weights[start : start + 2]), stored) for start in (0, 2, 4)]
        whole = encode(rows(weights), stored)
        for part, expected in zip(zip(*pieces, strict=True), whole, strict=True):
            assert b"".join(piece.tobytes() for piece in part) == expected.tobytes()


def test_fp16_of_every_bfloat16() -> None:
    """Those in fp16's range, normal and not, are rounded as NumPy rounds; finite ones beyond it are
    refused, infinity and NaN are kept."""
    bits = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)
    wide = widen(bits, "BF16")
    fits = (np.abs(wide) < 65520) | np.isinf(wide)
    narrow = to_float16(Rows("layer", "BF16", bits[fits].reshape(-1, 2)))
    assert narrow.tobytes() == wide[fits].astype(np.float16).tobytes()
    nan = to_float16(Rows("layer", "BF16", np.full((1, 2), 0x7FC0, np.uint16)))
    assert np.isnan(nan).all()
    for item in bits[~fits & ~np.isnan(wide)][::97]:
        with pytest.raises(WorkerError, match="outside of fp16"):
            to_float16(Rows("layer", "BF16", np.full((1, 2), item)))


def test_int4_leaves_8_bits_to_embedding_and_output() -> None:
    options = {"mode": "int4_sym", "group_size": 128}
    assert encoding("model.layers.3.mlp.down_proj.weight", (4, 4), options) == Encoding("i4", 128)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert encoding(name, (4, 4), options) == Encoding("u8")
        assert encoding(name, (4, 4), {"mode": "int8_sym"}) == Encoding("i8")
        assert encoding(name, (4, 4), {"mode": "fp16"}) == Encoding("f16")
