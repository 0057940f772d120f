"""The mlx backend's spec: variants, skips, sizes."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from phibuild.backends.base import SourceFiles
from phibuild.backends.mlx.layout import module_order
from phibuild.backends.mlx.options import MlxOptions
from phibuild.backends.mlx.spec import SPEC
from phibuild.schema import Device, Misfit, Precision, Skip, Variant
from phibuild.worker.architecture import Architecture, Rope
from support.devices import SOURCES


def _architecture(**changes: Any) -> Architecture:
    values: dict[str, Any] = {
        "hidden_size": 128,
        "intermediate_size": 256,
        "layers": 2,
        "heads": 4,
        "kv_heads": 2,
        "vocab_size": 100,
        "tied": False,
        "max_positions": 4096,
        "original_max_positions": 4096,
        "sliding_window": None,
        "norm_eps": 1e-5,
        "dtype": "bfloat16",
        "rope": Rope(10000.0, 1.0, (), ()),
    }
    return Architecture(**values | changes)


def _device(*accelerators: str) -> Device:
    return Device.model_validate(
        {
            "name": "mac",
            "title": "A Mac",
            "class": "ai_pc",
            "memory": "16 GiB",
            "budget": "8 GiB",
            "accelerators": accelerators,
            "context_length": 4096,
            "sources": SOURCES,
        }
    )


def _result(
    precision: Precision, arch: Architecture | None = None, **options: Any
) -> Variant | Skip | Misfit:
    device = _device("cpu", "metal")
    return SPEC.variant(precision, MlxOptions(**options), device, arch or _architecture())


def _variant(precision: Precision, arch: Architecture | None = None, **options: Any) -> Variant:
    result = _result(precision, arch, **options)
    assert isinstance(result, Variant), result
    return result


def _reason(precision: Precision, arch: Architecture | None = None, **options: Any) -> str:
    result = _result(precision, arch, **options)
    assert isinstance(result, Skip), result
    return result.reason


@pytest.mark.parametrize(
    ("precision", "options", "name", "complete"),
    [
        ("int4", {}, "q4-g64", {"mode": "affine", "bits": 4, "group_size": 64}),
        ("int8", {}, "q8-g64", {"mode": "affine", "bits": 8, "group_size": 64}),
        ("int4", {"group_size": 32}, "q4-g32", {"mode": "affine", "bits": 4, "group_size": 32}),
        ("int4", {"bits": 5}, "q5-g64", {"mode": "affine", "bits": 5, "group_size": 64}),
        ("int8", {"bits": 6}, "q6-g64", {"mode": "affine", "bits": 6, "group_size": 64}),
        ("int4", {"mode": "mxfp4"}, "mxfp4", {"mode": "mxfp4", "bits": 4, "group_size": 32}),
        ("int8", {"mode": "mxfp8"}, "mxfp8", {"mode": "mxfp8", "bits": 8, "group_size": 32}),
    ],
)
def test_quantized_variants(
    precision: Precision, options: dict[str, Any], name: str, complete: dict[str, Any]
) -> None:
    variant = _variant(precision, **options)
    assert (variant.name, variant.format) == (name, "MLX")
    assert variant.options == complete | {"dtype": "bfloat16"}


def test_casts_have_no_other_options() -> None:
    assert _variant("fp16").options == {"dtype": "float16"}
    assert _variant("fp32").options == {"dtype": "float32"}


def test_the_float_type_of_scales_is_the_checkpoints_or_the_one_asked_for() -> None:
    assert _variant("int4", _architecture(dtype="float32")).options["dtype"] == "float32"
    asked = _variant("int4", dtype="float16")
    assert (asked.name, asked.options["dtype"]) == ("q4-g64-float16", "float16")
    assert _variant("int4", dtype="bfloat16") == _variant("int4")
    assert "float64" in _reason("int4", _architecture(dtype="float64"))


def test_a_group_that_does_not_divide_a_layer_is_skipped_with_those_that_do() -> None:
    narrow = _architecture(hidden_size=320, heads=5, kv_heads=5)
    assert "width 320" in _reason("int4", narrow, group_size=128)
    assert "use group_size 32 or 64" in _reason("int4", narrow, group_size=128)
    assert isinstance(_result("int4", narrow), Variant)
    odd = _architecture(intermediate_size=250)
    assert "width 250" in _reason("int8", odd)
    assert "no group of this mode (32 or 64 or 128) divides" in _reason("int8", odd)


def test_devices_without_metal_are_skipped() -> None:
    result = SPEC.variant("int4", MlxOptions(), _device("cpu", "cuda"), _architecture())
    assert isinstance(result, Skip)
    assert result.reason == "MLX artifacts run on Apple GPUs (metal); A Mac has cpu, cuda"


@pytest.mark.parametrize("options", [{"group_size": 48}, {"bits": 7}, {"mode": "nf4"}, {"b": 1}])
def test_ill_formed_options_are_errors(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        MlxOptions(**options)


def test_layout_by_hand() -> None:
    arch = _architecture()
    sizes = {tensor.name: tensor for tensor in SPEC.layout(arch, _variant("int4"))}
    # 100 rows of 128 weights: 64 bytes of 4-bit weights, 2 groups with a bf16 scale and bias each.
    embedding = sizes["model.embed_tokens.weight"]
    assert (embedding.kind, embedding.parameters, embedding.nbytes) == ("q4", 12800, 7200)
    norm = sizes["model.norm.weight"]
    assert (norm.kind, norm.parameters, norm.nbytes) == ("BF16", 128, 256)
    # 32 bytes of 4-bit weights a row of 64 for down_proj: 256 wide, 8 groups, one byte each.
    mxfp4 = {tensor.name: tensor for tensor in SPEC.layout(arch, _variant("int4", mode="mxfp4"))}
    down = mxfp4["model.layers.1.mlp.down_proj.weight"]
    assert (down.kind, down.nbytes) == ("mxfp4", 128 * (256 // 2 + 256 // 32))
    three = SPEC.layout(arch, _variant("int4", bits=3))[0]
    assert (three.kind, three.nbytes) == ("q3", 100 * (128 * 3 // 8 + 2 * 4))
    half = sum(tensor.nbytes for tensor in SPEC.layout(arch, _variant("fp16")))
    full = sum(tensor.nbytes for tensor in SPEC.layout(arch, _variant("fp32")))
    assert (half, full) == (2 * arch.parameters, 4 * arch.parameters)


def test_a_recipe_chooses_the_bits_of_each_matrix() -> None:
    arch = _architecture(layers=16)
    variant = _variant("int4", arch, recipe="mixed_4_6", group_size=32)
    assert variant.name == "mixed-4-6-g32"
    assert variant.options["recipe"] == "mixed_4_6"
    kinds = {tensor.name: tensor.kind for tensor in SPEC.layout(arch, variant)}
    more = {name for name, kind in kinds.items() if kind == "q6"}
    assert "lm_head.weight" in more
    assert kinds["model.embed_tokens.weight"] == "q4"
    # The first and the last eighth, and every third of those between.
    sensitive = {0, 1, 4, 7, 10, 13, 14, 15}
    for layer in range(16):
        for part in ("self_attn.qkv_proj", "mlp.down_proj"):
            assert (f"model.layers.{layer}.{part}.weight" in more) == (layer in sensitive)
        for part in ("self_attn.o_proj", "mlp.gate_up_proj"):
            assert kinds[f"model.layers.{layer}.{part}.weight"] == "q4"
    lower = _variant("int4", arch, recipe="mixed_2_6")
    assert SPEC.layout(arch, lower)[0].kind == "q2"


def test_every_tensor_is_stored_once_and_a_tied_head_not_at_all() -> None:
    for arch in (_architecture(), _architecture(tied=True)):
        order = [name for name, _ in module_order(arch)]
        assert sorted(order) == sorted(name for name, _ in arch.tensors())
        assert order[5:7] == [
            "model.layers.0.input_layernorm.weight",
            "model.layers.0.post_attention_layernorm.weight",
        ]
        assert order[-1] == ("model.norm.weight" if arch.tied else "lm_head.weight")


def test_memory_does_not_grow_with_the_model_or_the_variants() -> None:
    variants = [_variant("int4"), _variant("fp32")]
    small = SPEC.build_memory(_architecture(), 10**6, variants)
    assert small == SPEC.build_memory(_architecture(layers=40), 10**11, variants[:1])


def _phi35(**changes: Any) -> Architecture:
    return _architecture(
        **{
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "layers": 32,
            "heads": 32,
            "kv_heads": 32,
            "vocab_size": 32064,
        }
        | changes
    )


def test_judging_a_large_model_does_not_hold_its_weights() -> None:
    large = _phi35()
    variants = [_variant(precision, large) for precision in ("int4", "int8", "fp16", "fp32")]
    bound = SPEC.judge_memory(large, variants, 256)
    assert bound < 3 << 30
    # The caches of two runtimes, for 512 tokens of 2 x 3072 floats a layer, are all that grows.
    deeper = SPEC.judge_memory(_phi35(layers=64), variants, 256)
    assert deeper - bound == 32 * 2 * 512 * 2 * 3072 * 4


def test_judging_a_small_model_counts_its_weights_as_fp32() -> None:
    small, wider = _architecture(), _architecture(vocab_size=200)
    fp16 = _variant("fp16")
    more = SPEC.judge_memory(wider, [fp16], 256) - SPEC.judge_memory(small, [fp16], 256)
    assert more >= 4 * (wider.parameters - small.parameters)


def test_the_cache_has_the_type_of_the_activations() -> None:
    assert SPEC.kv_bytes_per_element(_variant("int4")) == 2
    assert SPEC.kv_bytes_per_element(_variant("fp32")) == 4


def test_copied_files_count_and_others_do_not() -> None:
    arch, variant = _architecture(), _variant("int4")
    alone = SPEC.other_bytes(arch, SourceFiles({}, 0, 0, 0, 0, "bpe"), variant)
    files = {"tokenizer.json": 1000, "generation_config.json": 10, "heldout.txt": 5000}
    assert SPEC.other_bytes(arch, SourceFiles(files, 0, 0, 0, 0, "bpe"), variant) == alone + 1010
