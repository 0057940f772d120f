"""The pytorch backend's spec: variants, skips, stored tensors and sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from phibuild.backends.base import SourceFiles
from phibuild.backends.pytorch.config_groups import PromisedLayers
from phibuild.backends.pytorch.layout import Scheme, entry_bytes, file_entries
from phibuild.backends.pytorch.memory import SHORT_WINDOW, reference_memory
from phibuild.backends.pytorch.options import PytorchOptions
from phibuild.backends.pytorch.spec import SPEC
from phibuild.schema import PRECISIONS, Device, Misfit, Precision, Skip, Variant
from phibuild.worker.architecture import Architecture, Rope
from phibuild.worker.safetensors import ITEM_BYTES
from support.devices import SOURCES

DEFAULTS = Path(__file__).parents[2] / "conf" / "backend" / "pytorch.yaml"


def _architecture(**changes: Any) -> Architecture:
    values: dict[str, Any] = {
        "hidden_size": 128,
        "intermediate_size": 256,
        "layers": 1,
        "heads": 4,
        "kv_heads": 2,
        "vocab_size": 100,
        "tied": True,
        "max_positions": 4096,
        "original_max_positions": 4096,
        "sliding_window": None,
        "norm_eps": 1e-5,
        "dtype": "bfloat16",
        "rope": Rope(10000.0, 1.0, (), ()),
    }
    return Architecture(**values | changes)


@pytest.mark.parametrize(
    ("scheme", "name", "stored"), [("W8A8", "w8a8", "I8"), ("FP8_DYNAMIC", "fp8", "F8_E4M3")]
)
def test_schemes_of_8_bits(scheme: str, name: str, stored: str) -> None:
    """A byte a weight, and a scale of 2 bytes for each row of qkv, o, gate_up and down."""
    variant = _result("int8", scheme=scheme)
    assert isinstance(variant, Variant)
    assert variant.name == name
    arch = _architecture()
    layout = SPEC.layout(arch, variant)
    linear = [tensor for tensor in layout if tensor.kind == name]
    assert sum(one.parameters for one in linear) == 128 * (256 + 128 + 512 + 256)
    assert sum(one.nbytes for one in linear) == 128 * 1152 + 2 * (256 + 128 + 512 + 128)
    entries = {
        entry: kind for entry, kind, _ in file_entries(arch, Scheme.from_options(variant.options))
    }
    assert entries["model.layers.0.mlp.down_proj.weight"] == stored
    judging = SPEC.judging(variant)
    assert judging.how == "substitute"


@pytest.mark.parametrize(
    ("precision", "options", "wrong"),
    [
        ("int4", {}, ("scheme",)),
        ("int8", {"group_size": 64}, ("group_size", "scheme")),
        ("int8", {"symmetric": False}, ("symmetric", "scheme")),
        ("int8", {"symmetric": True, "dtype": "float16"}, None),
    ],
)
def test_what_a_scheme_does_not_go_with(
    precision: Precision, options: dict[str, Any], wrong: tuple[str, ...] | None
) -> None:
    found = SPEC.contradiction(precision, PytorchOptions(scheme="W8A8", **options))
    assert (found and found.options) == wrong


DEVICE = Device.model_validate(
    {
        "name": "pc",
        "title": "A PC",
        "class": "ai_pc",
        "memory": "32 GiB",
        "budget": "16 GiB",
        "accelerators": ["cuda"],
        "context_length": 4096,
        "sources": SOURCES,
    }
)


def _result(
    precision: Precision, arch: Architecture | None = None, **options: Any
) -> Variant | Skip | Misfit:
    return SPEC.variant(precision, PytorchOptions(**options), DEVICE, arch or _architecture())


def _variant(precision: Precision, arch: Architecture | None = None, **options: Any) -> Variant:
    result = _result(precision, arch, **options)
    assert isinstance(result, Variant)
    return result


def _reason(precision: Precision, arch: Architecture | None = None, **options: Any) -> str:
    result = _result(precision, arch, **options)
    assert isinstance(result, Skip)
    return result.reason


@pytest.mark.parametrize(
    ("precision", "options", "name"),
    [
        ("fp32", {}, "fp32"),
        ("fp16", {}, "fp16"),
        ("int8", {}, "w8a16-g128"),
        ("int4", {}, "w4a16-g128"),
        ("int4", {"group_size": 32}, "w4a16-g32"),
        ("int4", {"group_size": 64, "symmetric": False}, "w4a16-asym-g64"),
    ],
)
def test_variants_have_the_names_that_vllm_users_know(
    precision: Precision, options: dict[str, Any], name: str
) -> None:
    assert _variant(precision, **options).name == name


def test_options_of_a_variant_are_complete() -> None:
    assert _variant("int4").options == {
        "dtype": "bfloat16",
        "bits": 4,
        "group_size": 128,
        "symmetric": True,
    }
    assert _variant("int8", _architecture(dtype="float32")).options["dtype"] == "float32"
    assert _variant("int8", dtype="float16").options["dtype"] == "float16"
    assert _variant("fp16").options == {"dtype": "float16"}


@pytest.mark.parametrize("change", [{"intermediate_size": 352}, {"hidden_size": 160}])
def test_one_group_size_that_divides_every_layer(change: dict[str, int]) -> None:
    arch = _architecture(**change)
    assert _variant("int4", arch).name == "w4a16-g32"
    assert _variant("int8", arch).name == "w8a16-g32"
    ((what, width),) = change.items()
    assert _reason("int4", arch, group_size=128) == f"groups of 128 do not divide {what} ({width})"


def test_no_group_size_divides() -> None:
    arch = _architecture(intermediate_size=200)
    assert _reason("int4", arch) == "groups of 32 do not divide intermediate_size (200)"


def test_a_dtype_that_cannot_hold_scales() -> None:
    arch = _architecture(dtype="float8_e4m3fn")
    assert "set dtype to bfloat16 or float16" in _reason("int4", arch)
    assert _variant("int4", arch, dtype="bfloat16").options["dtype"] == "bfloat16"
    assert _variant("fp16", arch).name == "fp16"


@pytest.mark.parametrize(
    "options",
    [
        {"group_size": 48},
        {"group_size": "64"},
        {"symmetric": "yes"},
        {"dtype": "float32"},
        {"bits": 3},
    ],
)
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PytorchOptions.model_validate(options)


def test_shipped_defaults_are_the_options_defaults() -> None:
    shipped = yaml.safe_load(DEFAULTS.read_text(encoding="utf-8"))
    assert sorted(shipped) == sorted(PRECISIONS)
    for options in shipped.values():
        assert PytorchOptions.model_validate(options) == PytorchOptions()


def test_layout_of_a_quantized_layer() -> None:
    tensors = {tensor.name: tensor for tensor in SPEC.layout(_architecture(), _variant("int4"))}
    # qkv_proj: (4 + 2 * 2) * 32 = 256 rows of 128: half a byte each, one bf16 scale a row, and
    # two int64 of shape.
    layer = tensors["model.layers.0.self_attn.qkv_proj.weight"]
    assert (layer.kind, layer.parameters) == ("w4", 256 * 128)
    assert layer.nbytes == 256 * 64 + 256 * 2 + 16
    embedding = tensors["model.embed_tokens.weight"]
    assert (embedding.kind, embedding.nbytes) == ("BF16", 100 * 128 * 2)
    norm = tensors["model.norm.weight"]
    assert (norm.kind, norm.nbytes) == ("BF16", 256)
    assert "lm_head.weight" not in tensors  # tied


def test_layout_with_zero_points() -> None:
    variant = _variant("int8", symmetric=False, group_size=64, dtype="float16")
    tensors = {tensor.name: tensor for tensor in SPEC.layout(_architecture(), variant)}
    # down_proj: 128 rows of 256: a byte each, 4 fp16 scales a row, zero points of 4 rows in an
    # int32.
    layer = tensors["model.layers.0.mlp.down_proj.weight"]
    assert layer.kind == "w8-asym"
    assert layer.nbytes == 128 * 256 + 128 * 4 * 2 + 16 + 32 * 4 * 4


def test_zero_points_of_the_last_rows_are_padded_to_a_word() -> None:
    scheme = Scheme.from_options(_variant("int4", symmetric=False, group_size=32).options)
    shapes = {name: shape for name, _, shape in scheme.entries("a.o_proj.weight", (36, 64))}
    assert shapes["a.o_proj.weight_zero_point"] == (5, 2)  # 36 rows, 8 to a word


def test_lm_head_and_embedding_are_not_quantized() -> None:
    kinds = {t.name: t.kind for t in SPEC.layout(_architecture(tied=False), _variant("int4"))}
    assert kinds["lm_head.weight"] == kinds["model.embed_tokens.weight"] == "BF16"
    assert sum(kind == "w4" for kind in kinds.values()) == 4


def test_layers_of_other_types() -> None:
    types = {"down_proj": "w8", "o_proj": "w4g32", "qkv_proj": "BF16"}
    variant = _variant("int4", tensor_types=types)
    assert variant.name == "w4a16-g128-mixed"
    tensors = {
        tensor.name.split(".")[-2]: (tensor.kind, tensor.nbytes)
        for tensor in SPEC.layout(_architecture(), variant)
    }
    # Of 128 rows of 256, 128 of 128, 256 of 128, 512 of 128; two int64 of shape where packed.
    assert tensors["down_proj"] == ("w8", 128 * 256 + 128 * 2 * 2 + 16)
    assert tensors["o_proj"] == ("w4", 128 * 64 + 128 * 4 * 2 + 16)
    assert tensors["qkv_proj"] == ("BF16", 256 * 128 * 2)
    assert tensors["gate_up_proj"] == ("w4", 512 * 64 + 512 * 2 + 16)


@pytest.mark.parametrize(
    ("options", "kind", "known"),
    [
        ({}, "w4g64", "w4 or w4g32 or w8 or BF16"),
        ({"dtype": "float16"}, "BF16", "w4 or w4g32 or w8 or F16"),
        ({"group_size": 32}, "w4g32", "w4 or w8 or BF16"),
    ],
)
def test_types_that_a_layer_can_have(options: dict[str, Any], kind: str, known: str) -> None:
    made = SPEC.variant(
        "int4",
        PytorchOptions(tensor_types={"o_proj": kind}, **options),
        DEVICE,
        _architecture(),
    )
    assert isinstance(made, Misfit)
    assert made.remedy == f"it can be {known}"


def test_a_target_chooses_among_quantized_types() -> None:
    variant = _variant("int4", target_kl=0.1, method="gptq")
    matrices = SPEC.matrices(_architecture(), variant)
    assert len(matrices) == 4
    assert {tuple(choice.kind for choice in one.choices) for one in matrices} == {
        ("w4", "w4g32", "w8")
    }


def test_a_configuration_names_the_layers_of_each_group() -> None:
    group = {"targets": ["model.layers.0.mlp.down_proj"], "weights": {"num_bits": 8}}
    whole = {"targets": ["Linear"], "weights": {"num_bits": 4}}
    quantization = {"config_groups": {"a": whole, "b": group}, "ignore": ["lm_head"]}
    layers = PromisedLayers({"quantization_config": quantization})
    assert layers.is_quantized
    assert layers.of("model.layers.0.mlp.down_proj.weight") == {"num_bits": 8}
    assert layers.of("model.layers.10.mlp.down_proj.weight") == {"num_bits": 4}
    assert layers.of("lm_head.weight") is None
    assert PromisedLayers({}).of("model.layers.0.mlp.down_proj.weight") is None


@pytest.mark.parametrize(("precision", "kind"), [("fp16", "F16"), ("fp32", "F32")])
def test_plain_layout(precision: Precision, kind: str) -> None:
    arch = _architecture()
    tensors = SPEC.layout(arch, _variant(precision))
    assert {tensor.kind for tensor in tensors} == {kind}
    assert sum(tensor.parameters for tensor in tensors) == arch.parameters
    assert sum(tensor.nbytes for tensor in tensors) == arch.parameters * ITEM_BYTES[kind]


def test_every_stored_tensor_is_aligned() -> None:
    # A vocabulary, head and row count that leave odd multiples of 2 and 4 bytes.
    arch = _architecture(hidden_size=96, heads=48, kv_heads=1, intermediate_size=32, vocab_size=101)
    variant = _variant("int4", arch, symmetric=False)
    offset = 0
    for entry in file_entries(arch, Scheme.from_options(variant.options)):
        assert offset % ITEM_BYTES[entry[1]] == 0, entry
        offset += entry_bytes(entry)


def test_other_bytes_grow_with_what_is_copied() -> None:
    arch, variant = _architecture(), _variant("fp16")
    few = SourceFiles({"config.json": 900, "model.safetensors": 10**6}, 100, 0, 0, 0, "bpe")
    many = SourceFiles({**few.files, "tokenizer.json": 5000, "LICENSE": 7}, 100, 0, 0, 0, "bpe")
    assert SPEC.other_bytes(arch, many, variant) - SPEC.other_bytes(arch, few, variant) == 5000


def test_build_memory_does_not_grow_with_the_model() -> None:
    variants = [_variant("int4"), _variant("fp16")]
    small, large = _architecture(), _architecture(layers=80)
    assert SPEC.build_memory(small, 10**6, variants) == SPEC.build_memory(large, 10**11, variants)


def _phi35_mini(**changes: Any) -> Architecture:
    values: dict[str, Any] = {
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "layers": 32,
        "heads": 32,
        "kv_heads": 32,
        "vocab_size": 32064,
        "tied": False,
    }
    return _architecture(**values | changes)


def test_memory_does_not_grow_with_layers() -> None:
    variants = [_variant("int4"), _variant("fp32")]
    usual, deep = _phi35_mini(), _phi35_mini(layers=320)
    assert SPEC.build_memory(usual, 0, variants) == SPEC.build_memory(deep, 0, variants) < 1e9
    assert reference_memory(usual, 20, 256) == reference_memory(deep, 20, 256) < 2e9
    # Nothing but the key-value cache of one window grows.
    cache = SPEC.judge_memory(deep, variants, 256) - SPEC.judge_memory(usual, variants, 256)
    assert cache == 288 * 2 * 3072 * 4 * SHORT_WINDOW
    assert SPEC.judge_memory(usual, variants, 256) < 5e9


def test_a_small_model_is_judged_in_less() -> None:
    small = SPEC.judge_memory(_architecture(), [_variant("int4")], 256)
    assert small < SPEC.judge_memory(_phi35_mini(), [_variant("int4")], 256) - 2e9


def test_reference_memory_counts_both_sets_of_rope_factors() -> None:
    factors = (1.0,) * 48
    rope = Rope(10000.0, 1.0, factors, factors)
    grown = reference_memory(_phi35_mini(rope=rope), 20, 256)
    assert grown - reference_memory(_phi35_mini(), 20, 256) == 20 * 256 * 3072 * 4


def test_cache_elements_have_the_computing_dtype() -> None:
    assert SPEC.kv_bytes_per_element(_variant("fp32")) == 4
    assert SPEC.kv_bytes_per_element(_variant("fp16")) == 2
    assert SPEC.kv_bytes_per_element(_variant("int4")) == 2


def test_the_command_names_the_tool() -> None:
    assert SPEC.run_command(_variant("int4")) == "vllm serve ."
    compile(SPEC.run_command(_variant("fp16")), "README", "exec")
    assert "dtype='float16'" in SPEC.run_command(_variant("fp16"))
