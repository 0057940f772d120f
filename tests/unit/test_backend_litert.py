"""The litert spec: variants, contexts, sizes; and integers by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from phibuild.backends.litert.encode import encode, from_codes
from phibuild.backends.litert.layout import stored_as
from phibuild.backends.litert.options import LiteRtOptions
from phibuild.backends.litert.spec import SPEC
from phibuild.schema import Misfit, Precision, Skip, Variant
from phibuild.worker.architecture import Architecture, read_architecture
from phibuild.worker.codes import CodedRows
from phibuild.worker.floats import cast
from phibuild.worker.protocol import WorkerError
from phibuild.worker.rows import Rows
from support.written_build import device


def architecture(**overrides: Any) -> Architecture:
    """One layer: qkv [384, 128], o [128, 128], gate_up [512, 128], down [128, 256]; 100 tokens."""
    return read_architecture(
        {
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "vocab_size": 100,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "torch_dtype": "bfloat16",
            **overrides,
        }
    )


LONGROPE = {
    "max_position_embeddings": 131072,
    "original_max_position_embeddings": 2048,
    "rope_scaling": {
        "type": "longrope",
        "short_factor": [1.0] * 16,
        "long_factor": [2.0] * 16,
    },
}


def choose(
    precision: Precision,
    *,
    device_context: int = 4096,
    arch: Architecture | None = None,
    **options: Any,
) -> Variant | Skip | Misfit:
    made = LiteRtOptions(**options)
    return SPEC.variant(precision, made, device(device_context), arch or architecture())


def built(precision: Precision, **options: Any) -> Variant:
    variant = choose(precision, **options)
    assert isinstance(variant, Variant), variant
    return variant


def test_names_and_bytes_of_all_weights() -> None:
    """Counted by hand: 128 * (384 + 128 + 512 + 256 + 2 * 100) weights in matrices."""
    matrices, norms, rows = 128 * (384 + 128 + 512 + 256 + 200), 3 * 128, 384 + 128 + 512 + 128
    expected = {
        "int4": ("int4-b32", matrices // 2 + matrices // 32 * 2),
        "int8": ("int8", matrices + 24 * (rows + 200)),
        "fp16": ("fp16", 2 * matrices),
        "fp32": ("fp32", 4 * matrices),
    }
    for precision, (name, nbytes) in expected.items():
        variant = built(precision)  # type: ignore[arg-type]
        assert variant.name == name
        layout = SPEC.layout(architecture(), variant)
        assert sum(tensor.nbytes for tensor in layout) == nbytes + 4 * norms
        assert sum(tensor.parameters for tensor in layout) == matrices + norms


def test_types_by_tensor() -> None:
    variant = built("int4", group_size=128, tensor_types={"embed|lm_head": "INT8"})
    kinds = {one.name: one.kind for one in SPEC.layout(architecture(), variant)}
    assert kinds["lm_head.weight"] == kinds["model.embed_tokens.weight"] == "INT8"
    assert kinds["model.layers.0.mlp.down_proj.weight"] == "INT4"
    wrong = choose("int4", tensor_types={"embed": "INT4b64"})
    assert isinstance(wrong, Misfit)
    assert wrong.remedy == "it can be INT4b32 or INT8"


def rows(values: Any, dtype: str = "F32") -> Rows:
    return Rows("layer", dtype, np.asarray(values, np.float32))


def test_int8_by_hand() -> None:
    stored = encode(rows([[-127, 63.5, 1, 0], [0, 0, 0, 0], [0.5, -0.25, 0, 0]]), stored_as("INT8"))
    assert stored.data.tolist() == [[-127, 64, 1, 0], [0, 0, 0, 0], [127, -64, 0, 0]]
    assert stored.scales is not None
    assert stored.scales.tolist() == [1, np.float32(1e-9) / np.float32(127), np.float32(0.5 / 127)]


def test_int4_by_hand() -> None:
    """Blocks of 4: the first of a pair in the lower half; scales are fp16 and bf16 both."""
    stored = encode(rows([[-7, 3.5, 1, 0, 0.3, 0, -0.1, 0]]), stored_as("INT4", 4))
    scale = 0.04296875  # 0.3 / 7 in bf16
    assert stored.scales is not None
    assert stored.scales.tolist() == [[1.0, scale]]
    codes = [-7, 4, 1, 0, round(0.3 / scale), 0, round(-0.1 / scale), 0]
    nibbles = [code & 15 for code in codes]
    pairs = zip(nibbles[::2], nibbles[1::2], strict=True)
    assert stored.data.tolist() == [[low | high << 4 for low, high in pairs]]


def test_a_block_of_nothing_has_a_scale_all_the_same() -> None:
    stored = encode(rows([[0, 0, 1e-12, -1e-12]]), stored_as("INT4", 2))
    assert stored.scales is not None
    assert stored.scales.tolist() == [[2.0**-24, 2.0**-24]]
    assert stored.data.tolist() == [[0, 0]]


@pytest.mark.parametrize("value", [np.inf, np.nan, 1e6])
def test_what_has_no_scale_is_refused(value: float) -> None:
    with pytest.raises(WorkerError, match="tensor layer holds weights that are not finite"):
        encode(rows([[0, 1, 2, value]]), stored_as("INT4", 4))


def test_halves() -> None:
    assert encode(rows([[1.0, 65519]]), stored_as("FLOAT16")).data.tolist() == [[1.0, 65504.0]]
    with pytest.raises(WorkerError, match="tensor layer holds values outside of fp16"):
        encode(rows([[1.0, 65520]]), stored_as("FLOAT16"))


def test_codes_of_a_grid() -> None:
    """Codes 0 to 15 around 8 are two's complement here; bf16's scales are fp16's."""
    scales = cast(np.asarray([[0.5]], np.float32), "F32", "BF16")
    stored = from_codes(CodedRows(np.asarray([[0, 8, 15, 9]], np.uint8), scales, None))
    assert stored.data.tolist() == [[8 | 0 << 4, 7 | 1 << 4]]
    assert stored.scales is not None
    assert stored.scales.tolist() == [[0.5]]
