"""The coreai spec: variants, contexts, sizes; integers by hand; the module as text."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from phibuild.backends.coreai.decoder import module, parts
from phibuild.backends.coreai.encode import encode, from_codes
from phibuild.backends.coreai.layout import EMBEDDING, HEAD, stored_as
from phibuild.backends.coreai.metadata import bundle
from phibuild.backends.coreai.options import CoreAiOptions
from phibuild.backends.coreai.spec import SPEC
from phibuild.backends.coreai.tokenizer import BundleTokenizer, write_tokenizer
from phibuild.schema import Misfit, Precision, Skip, Variant
from phibuild.worker.architecture import Architecture
from phibuild.worker.codes import CodedRows
from phibuild.worker.protocol import WorkerError
from phibuild.worker.rows import Rows
from support.written_build import device
from unit.test_backend_litert import LONGROPE, architecture


def choose(
    precision: Precision,
    *,
    device_context: int = 4096,
    arch: Architecture | None = None,
    **options: Any,
) -> Variant | Skip | Misfit:
    made = CoreAiOptions(**options)
    return SPEC.variant(precision, made, device(device_context), arch or architecture())


@pytest.mark.parametrize("tied", [False, True])
def test_names_and_bytes_of_all_weights(tied: bool) -> None:
    """Counted by hand: 128 * (384 + 128 + 512 + 256) weights in layers, 128 * 100 in embedding and
    output layer, which are one in fp16 where they are tied."""
    layers, table, norms = 128 * (384 + 128 + 512 + 256), 128 * 100, 3 * 128
    rows = 384 + 128 + 512 + 128
    head = 0 if tied else table
    expected = {
        "int4": ("int4-b32", (layers + head) // 2 + (layers + head) // 32 * 2 + 2 * table),
        "int8": ("int8", layers + head + 2 * (rows + (not tied) * 100) + 2 * table),
        "fp16": ("fp16", 2 * (layers + head + table)),
        "fp32": ("fp32", 4 * (layers + head + table)),
    }
    arch = architecture(tie_word_embeddings=tied)
    for precision, (name, nbytes) in expected.items():
        variant = choose(precision, arch=arch)  # type: ignore[arg-type]
        assert isinstance(variant, Variant)
        assert variant.name == name
        layout = SPEC.layout(arch, variant)
        size = 4 if precision == "fp32" else 2
        assert sum(tensor.nbytes for tensor in layout) == nbytes + size * norms
        assert SPEC.judging(variant).how == ("native" if precision == "fp32" else "substitute")


@pytest.mark.parametrize(
    ("device_context", "asked", "overrides", "expected"),
    [
        (8192, None, {}, 4096),  # the model has no more
        (1000, None, {}, 4096),  # the cache is the runner's
        (4096, None, LONGROPE, 2048),  # the short factors
        (4096, None, {"sliding_window": 2047}, 2047),
        (2048, 256, {}, 256),
    ],
)
def test_context(
    device_context: int, asked: int | None, overrides: dict[str, Any], expected: int
) -> None:
    arch = architecture(**overrides)
    options = {"context": asked} if asked else {}
    variant = choose("int8", device_context=device_context, arch=arch, **options)
    assert isinstance(variant, Variant)
    assert variant.options["context"] == expected
    assert variant.name == ("int8-c256" if asked else "int8")
    limit = SPEC.context_limit(arch, variant)
    assert limit is None if expected == 4096 else limit and limit.tokens == expected


@pytest.mark.parametrize(
    ("overrides", "options", "reason"),
    [
        (LONGROPE, {"context": 4096}, "a context of 4096 is not 64 to 2048 tokens"),
        ({"sliding_window": 512}, {"context": 1024}, "reaches back over a window"),
        ({"intermediate_size": 240}, {"group_size": 128}, "groups of 128 do not divide"),
    ],
)
def test_skips(overrides: dict[str, Any], options: dict[str, Any], reason: str) -> None:
    skip = choose("int4", arch=architecture(**overrides), **options)
    assert isinstance(skip, Skip)
    assert reason in skip.reason


def test_types_by_tensor() -> None:
    variant = choose("int4", group_size=128, tensor_types={"lm_head": "INT8"})
    assert isinstance(variant, Variant)
    kinds = {one.name: one.kind for one in SPEC.layout(architecture(), variant)}
    assert (kinds[HEAD], kinds[EMBEDDING]) == ("INT8", "FLOAT16")
    assert kinds["model.layers.0.mlp.down_proj.weight"] == "INT4"
    assert isinstance(choose("int4", tensor_types={"embed": "INT8"}), Misfit)


def rows(values: Any, dtype: str = "F32") -> Rows:
    return Rows("layer", dtype, np.asarray(values, np.float32))


def test_integers_by_hand() -> None:
    """Scales are (2 * largest + 1e-6) / 14 or 254; the first of a pair is in the lower half."""
    stored = encode(rows([[-7, 3.5, 1, 0], [0, 0, 0, 0]]), stored_as("INT4", 4))
    assert stored.scales is not None
    assert stored.scales.tolist() == [[1.0], [np.float16(1e-6 / 14)]]
    assert stored.data.tolist() == [[9 | 3 << 4, 1], [0, 0]]  # 3.5 lies below half: 3.4999998
    stored = encode(rows([[-127, 63.5, 1, 0]]), stored_as("INT8"))
    assert stored.data.tolist() == [[-127, 64, 1, 0]]  # float32's 254 + 1e-6 is 254


@pytest.mark.parametrize("value", [np.inf, np.nan, 1e6])
def test_what_has_no_scale_is_refused(value: float) -> None:
    with pytest.raises(WorkerError, match="tensor layer holds weights that are not finite"):
        encode(rows([[0, 1, 2, value]]), stored_as("INT4", 4))


def test_codes_of_a_grid() -> None:
    scales = np.asarray([[0.5]], np.float16)
    stored = from_codes(CodedRows(np.asarray([[0, 8, 15, 9]], np.uint8), scales, None))
    assert stored.data.tolist() == [[8 | 0 << 4, 7 | 1 << 4]]
    assert np.asarray(stored.scales).tolist() == [[0.5]]


def test_what_is_fused_is_apart() -> None:
    arch = architecture(num_key_value_heads=2)
    found = parts(arch, "model.layers.0.self_attn.qkv_proj.weight", 256)
    assert [name.split(".")[-2] for name in found] == ["q_proj", "k_proj", "v_proj"]
    assert list(found.values()) == [128, 64, 64]
    assert parts(arch, HEAD, 100) == {HEAD: 100}


@pytest.mark.parametrize("mode", ["fp32", "fp16", "int8", "int4"])
def test_every_weight_is_in_the_module_once(mode: str) -> None:
    arch = architecture(num_key_value_heads=2, tie_word_embeddings=True)
    text = module(arch, {"mode": mode, "group_size": 32}, [1.0] * 16)
    names = re.findall(r"dense_resource<without\.([^>]+)>", text)
    assert len(names) == len(set(names))
    expected = {
        part
        for name, shape in arch.tensors()
        for part in (parts(arch, name, shape[0]) if len(shape) == 2 else [name])
    }
    assert {name.removesuffix(".scales") for name in names} == expected
    assert ("f16" in text) == (mode != "fp32")


def test_a_bundle_has_no_date() -> None:
    said = json.loads(bundle(architecture(), "phi", 512, "int4"))
    assert said["compilation"]["date"] is None
    assert said["language"]["max_context_length"] == 512


def test_apples_runner_stops_where_the_source_does(tmp_path: Path) -> None:
    added = [{"content": text, "id": number} for number, text in enumerate("abcd")]
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    config = {"eos_token": {"content": "b"}, "additional_special_tokens": ["d"], "é": 1}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    write_tokenizer(tmp_path, [1, 0])
    assert BundleTokenizer(tmp_path).stops() == [0, 1]
    own = json.loads((tmp_path / "tokenizer" / "tokenizer_config.json").read_text("utf-8"))
    assert own == {"eos_token": {"content": "b"}, "additional_special_tokens": ["a"], "é": 1}
    assert json.loads((tmp_path / "tokenizer_config.json").read_text()) == config
