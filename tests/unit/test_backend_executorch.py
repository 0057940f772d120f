"""The executorch spec: variants, contexts, sizes; integers by hand; where bytes lie."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from phibuild.backends.executorch.encode import encode, from_codes
from phibuild.backends.executorch.graph import TURN, parts, small_factors
from phibuild.backends.executorch.layout import EMBEDDING, HEAD, stored_as
from phibuild.backends.executorch.method import rope_tables
from phibuild.backends.executorch.options import ExecuTorchOptions
from phibuild.backends.executorch.program import (
    ALIGNMENT,
    Segments,
    segments_begin,
    with_header,
)
from phibuild.backends.executorch.spec import SPEC
from phibuild.backends.executorch.tokenizer import runner_tokenizer
from phibuild.schema import Misfit, Precision, Skip, Variant
from phibuild.worker.architecture import Architecture
from phibuild.worker.codes import CodedRows
from phibuild.worker.floats import cast
from phibuild.worker.protocol import WorkerError
from phibuild.worker.rows import Rows
from support.written_build import device
from unit.test_backend_litert import architecture


def choose(
    precision: Precision,
    *,
    device_context: int = 4096,
    arch: Architecture | None = None,
    **options: Any,
) -> Variant | Skip | Misfit:
    made = ExecuTorchOptions(**options)
    return SPEC.variant(precision, made, device(device_context), arch or architecture())


@pytest.mark.parametrize("tied", [False, True])
def test_names_and_bytes_of_all_weights(tied: bool) -> None:
    """Counted by hand: 128 * (384 + 128 + 512 + 256 + 100) weights in what is multiplied by, and
    128 * 100 in the embedding, which is there once more where it is the output layer, too."""
    factors, embedding, norms = 128 * (384 + 128 + 512 + 256 + 100), 128 * 100, 3 * 128
    rows = 384 + 128 + 512 + 128 + 100
    byte = embedding + 4 * 100
    expected = {
        "int4": ("int4-b32", factors // 2 + factors // 32 * 2 + byte),
        "int8": ("int8", factors + 4 * rows + byte),
        "fp16": ("fp16", 2 * (factors + embedding)),
        "fp32": ("fp32", 4 * (factors + embedding)),
    }
    arch = architecture(tie_word_embeddings=tied)
    for precision, (name, nbytes) in expected.items():
        variant = choose(precision, arch=arch)  # type: ignore[arg-type]
        assert isinstance(variant, Variant)
        assert variant.name == name
        layout = SPEC.layout(arch, variant)
        assert sum(tensor.nbytes for tensor in layout) == nbytes + 4 * norms
        assert sum(tensor.parameters for tensor in layout) == factors + embedding + norms


def test_types_by_tensor() -> None:
    variant = choose("int4", group_size=128, tensor_types={"lm_head": "INT8"})
    assert isinstance(variant, Variant)
    kinds = {one.name: one.kind for one in SPEC.layout(architecture(), variant)}
    assert kinds[HEAD] == kinds[EMBEDDING] == "INT8"
    assert kinds["model.layers.0.mlp.down_proj.weight"] == "INT4"
    for wrong in ({"down_proj": "INT4b64"}, {"embed": "INT4b32"}):  # the embedding is looked up
        assert isinstance(choose("int4", tensor_types=wrong), Misfit)


def rows(values: Any, dtype: str = "F32") -> Rows:
    return Rows("layer", dtype, np.asarray(values, np.float32))


def test_the_scale_of_least_squares() -> None:
    """For the integers that a row has, by the formula; no worse than the scale begun with."""
    values = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    stored = encode(rows(values), stored_as("INT8"))
    codes, scales = stored.data.astype(np.float64), np.asarray(stored.scales, np.float64)
    best = (values * codes).sum(axis=1) / (codes * codes).sum(axis=1)
    assert np.allclose(scales, best, rtol=1e-6)
    begun = np.abs(values).max(axis=1, keepdims=True) / 128
    plain = np.clip(np.rint(values / begun), -128, 127) * begun
    errors = [((made - values) ** 2).sum(axis=1) for made in (codes * scales[:, None], plain)]
    assert (errors[0] <= errors[1]).all()


def test_int4_by_hand() -> None:
    """Blocks of 2: the first weight in the lower half, 8 is zero; scales are bf16."""
    stored = encode(rows([[-8, 7, 0.5, -0.25], [0, 0, 3, 0]]), stored_as("INT4", 2))
    assert stored.data.tolist() == [[0 | 15 << 4, 15 | 4 << 4], [8 | 8 << 4, 15 | 8 << 4]]
    # 0.5 / 8 at first: codes 7 (limited) and -4, then (7 * 0.5 + 4 * 0.25) / 65 and so on.
    found = (np.asarray(stored.scales).astype(np.uint32) << 16).view(np.float32)
    assert found[0].tolist() == [1.0, pytest.approx(4.5 / 65, rel=2**-8)]
    assert found[1].tolist() == [np.finfo(np.float32).eps, pytest.approx(3 / 7, rel=2**-8)]


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_what_has_no_scale_is_refused(value: float) -> None:
    with pytest.raises(WorkerError, match="tensor layer holds weights that are not finite"):
        encode(rows([[0, 1, 2, value]]), stored_as("INT4", 4))


def test_halves() -> None:
    assert encode(rows([[1.0, 65519]]), stored_as("FLOAT16")).data.tolist() == [[1.0, 65504.0]]
    with pytest.raises(WorkerError, match="tensor layer holds values outside of fp16"):
        encode(rows([[1.0, 65520]]), stored_as("FLOAT16"))


def test_codes_of_a_grid() -> None:
    scales = cast(np.asarray([[0.5]], np.float32), "F32", "BF16")
    stored = from_codes(CodedRows(np.asarray([[0, 8, 15, 9]], np.uint8), scales, None))
    assert stored.data.tolist() == [[0 | 8 << 4, 15 | 9 << 4]]
    assert np.asarray(stored.scales).tolist() == scales.tolist()


def test_what_is_fused_is_apart() -> None:
    arch = architecture(num_key_value_heads=2)
    assert parts(arch, "model.layers.0.self_attn.qkv_proj.weight", 256) == {
        "model.layers.0.self_attn.q_proj.weight": 128,
        "model.layers.0.self_attn.k_proj.weight": 64,
        "model.layers.0.self_attn.v_proj.weight": 64,
    }
    assert parts(arch, HEAD, 100) == {HEAD: 100}


def test_half_a_head_is_turned() -> None:
    """Transformers' rotate_half, of 16 of 32 elements; the others are multiplied by sin 0."""
    arch = architecture(partial_rotary_factor=0.5)
    x = np.arange(32, dtype=np.float32)
    turned = small_factors(arch)[TURN] @ x
    assert turned[:16].tolist() == [*(-x[8:16]), *x[:8]]
    tables = rope_tables(arch, 4)
    assert (tables["cos"][:, 0, 16:] == 1).all()
    assert (tables["sin"][:, 0, 16:] == 0).all()


def test_segments_lie_apart() -> None:
    segments = Segments()
    assert [segments.constant(size) for size in (5, 7)] == [1, 2]
    assert segments.add(100) == 1
    room = segments.room(64)
    segments.name(room, {"a": 48, "b": 16})
    assert segments.constants == [0, 0, 16]
    assert segments.places == [(0, 23), (128, 100), (256, 48), (304, 16)]
    assert segments.names == {"a": 2, "b": 3}
    with pytest.raises(ValueError, match="constants come before"):
        segments.constant(1)


def test_a_header_says_where_segments_begin() -> None:
    program = (16).to_bytes(4, "little") + b"ET12" + bytes(100)
    file = with_header(program, 1000)
    assert len(file) % ALIGNMENT == 0
    assert segments_begin(file) == (len(program) + 32, len(file))
    assert int.from_bytes(file[:4], "little") == 48
    with pytest.raises(ValueError, match="no ExecuTorch program"):
        segments_begin(program)


def test_the_runners_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    steps = [{"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    path.write_text(json.dumps({"decoder": {"type": "Sequence", "decoders": steps}, "é": 1}))
    mended = runner_tokenizer(path)
    assert mended is not None
    assert json.loads(mended) == {
        "decoder": {"type": "Sequence", "decoders": steps[:1]},
        "é": 1,
    }
    for decoder in (None, {"type": "ByteLevel"}):
        path.write_text(json.dumps({"decoder": decoder}))
        assert runner_tokenizer(path) is None
