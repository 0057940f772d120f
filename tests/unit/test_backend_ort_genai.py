"""The ort_genai backend's spec: variants, skips, sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from phibuild.backends.base import SourceFiles
from phibuild.backends.ort_genai.layout import mixed_layers
from phibuild.backends.ort_genai.options import OrtGenaiOptions
from phibuild.backends.ort_genai.spec import SPEC
from phibuild.schema import Device, Misfit, Precision, Skip, Variant
from phibuild.worker.architecture import Architecture, Rope
from support.devices import SOURCES

ROOT = Path(__file__).resolve().parents[2]
ALL = ("cpu", "cuda", "directml", "webgpu")
_PRECISIONS: tuple[Precision, ...] = ("int4", "int8", "fp32")


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


def _result(
    precision: Precision,
    *,
    tied: bool = False,
    accelerators: tuple[str, ...] = ALL,
    arch: Architecture | None = None,
    **options: Any,
) -> Variant | Skip | Misfit:
    device = Device.model_validate(
        {
            "name": "pc",
            "title": "A PC",
            "class": "ai_pc",
            "memory": "16 GiB",
            "budget": "8 GiB",
            "accelerators": accelerators,
            "context_length": 4096,
            "sources": SOURCES,
        }
    )
    options_ = OrtGenaiOptions.model_validate(options)
    return SPEC.variant(precision, options_, device, arch or _architecture(tied=tied))


def _variant(precision: Precision, **arguments: Any) -> Variant:
    result = _result(precision, **arguments)
    assert isinstance(result, Variant), result
    return result


def _reason(precision: Precision, **arguments: Any) -> str:
    result = _result(precision, **arguments)
    assert isinstance(result, Skip), result
    return result.reason


@pytest.mark.parametrize(
    ("precision", "options", "name"),
    [
        ("int4", {}, "int4-cpu-b32"),
        ("int4", {"provider": "cuda", "block_size": 128}, "int4-cuda-b128"),
        ("int4", {"symmetric": False}, "int4-cpu-b32-asym"),
        ("int4", {"algorithm": "rtn", "symmetric": False}, "int4-cpu-b32-rtn-asym"),
        ("int4", {"algorithm": "k_quant"}, "int4-cpu-b32-k_quant"),
        ("int4", {"int8_matmuls": ["last_matmul"]}, "int4-cpu-b32-last_matmul"),
        ("int4", {"accuracy_level": 1}, "int4-cpu-b32-acc1"),
        ("int4", {"provider": "trt_rtx"}, "int4-trt_rtx-b32"),
        ("int8", {}, "int8-cpu-b32"),
        ("int8", {"provider": "webgpu"}, "int8-webgpu-b32"),
        ("fp16", {"provider": "dml"}, "fp16-dml"),
        ("fp32", {}, "fp32-cpu"),
    ],
)
def test_variant_is_named(precision: Precision, options: dict[str, Any], name: str) -> None:
    assert _variant(precision, **options).name == name


def test_variant_has_every_option_that_decides_bytes() -> None:
    assert _variant("int4").options == {
        "provider": "cpu",
        "block_size": 32,
        "algorithm": "default",
        "symmetric": True,
        "accuracy_level": 4,
        "int8_matmuls": [],
    }
    assert _variant("int4", provider="cuda").options["accuracy_level"] == 0
    assert _variant("int4", algorithm="k_quant").options["symmetric"] is False
    assert _variant("fp32").options == {"provider": "cpu"}
    assert _variant("int4", int8_matmuls=["mixed_layers", "last_matmul"]) == _variant(
        "int4", int8_matmuls=["last_matmul", "mixed_layers"]
    )


@pytest.mark.parametrize(
    ("precision", "arguments", "reason"),
    [
        ("fp16", {}, "do not decode an fp16 model"),
        ("fp32", {"provider": "cuda"}, "not valid"),
        ("fp32", {"provider": "webgpu"}, "computes in fp16"),
        ("int8", {"provider": "trt_rtx"}, "has no int8"),
        ("int8", {"provider": "dml"}, "use int4 or fp16"),
        ("int4", {"provider": "cuda", "accelerators": ("cpu",)}, "needs the accelerator cuda"),
        ("int4", {"provider": "dml", "int8_matmuls": ["last_matmul"]}, "int4 products alone"),
        ("int4", {"provider": "trt_rtx", "algorithm": "rtn"}, "DequantizeLinear"),
        ("int4", {"tied": True, "symmetric": False}, "use algorithm rtn or k_quant"),
        ("int4", {"tied": True, "int8_matmuls": ["last_matmul"]}, "rtn or k_quant"),
        ("int4", {"algorithm": "k_quant", "block_size": 128}, "a row of 128 has 1 of 128"),
    ],
)
def test_combination_that_cannot_work_is_skipped(
    precision: Precision, arguments: dict[str, Any], reason: str
) -> None:
    assert reason in _reason(precision, **arguments)


@pytest.mark.parametrize(
    ("head", "partial", "provider", "reason"),
    [
        (32, 0.75, "cpu", "a rotary width of 24"),
        (32, 0.25, "cpu", "a rotary width of 8"),
        (24, 1.0, "cpu", "heads of 24"),
        (24, 1.0, "cuda", "heads of 24"),
        (24, 1.0, "trt_rtx", "heads of 24"),
        (20, 1.0, "dml", "heads of 20; ONNX Runtime's GroupQueryAttention has only multiples of 8"),
        (24, 1.0, "dml", None),
        (32, 0.75, "dml", None),
        (96, 1.0, "cpu", None),  # Phi-3
        (128, 0.75, "cpu", None),  # Phi-4-mini
        (16, 1.0, "cpu", None),
        (32, 0.5, "webgpu", None),
    ],
)
@pytest.mark.case(
    "building",
    "ONNX: a rotary width that is no multiple of 16",
    None,
    "a skip in the plan, with the reason",
)
def test_shapes_that_group_query_attention_has_not(
    head: int, partial: float, provider: str, reason: str | None
) -> None:
    """Tried with onnxruntime-genai 0.18: each was built, and run or refused by the kernel."""
    arch = _architecture(hidden_size=4 * head, rope=Rope(10000.0, partial, (), ()))
    if reason is None:
        assert isinstance(_result("int4", provider=provider, arch=arch), Variant)
    else:
        assert reason in _reason("int4", provider=provider, arch=arch)


@pytest.mark.parametrize(
    ("provider", "window", "tokens"),
    [("dml", 2047, 2047), ("dml", 4096, None), ("dml", None, None), ("cpu", 2047, None),
     ("cuda", 2047, None), ("webgpu", 2047, None), ("trt_rtx", 2047, None)],
)  # fmt: skip
def test_directml_has_no_window(provider: str, window: int | None, tokens: int | None) -> None:
    arch = _architecture(sliding_window=window)
    found = SPEC.context_limit(arch, _variant("int4", provider=provider))
    assert (found.tokens if found else None) == tokens


@pytest.mark.parametrize(
    "options",
    [
        {"block_size": 48},
        {"provider": "rocm"},
        {"algorithm": "gptq"},
        {"symmetric": "maybe"},
        {"accuracy_level": 5},
        {"int8_matmuls": ["first"]},
        {"is_symmetric": True},
    ],
)
def test_ill_formed_option_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        OrtGenaiOptions.model_validate(options)


def test_shipped_configuration_has_known_options_alone() -> None:
    text = (ROOT / "conf" / "backend" / "ort_genai.yaml").read_text(encoding="utf-8")
    for precision, options in yaml.safe_load(text).items():
        assert isinstance(_result(precision, **options), Variant)


def _sizes(variant: Variant, arch: Architecture) -> dict[str, int]:
    return {tensor.name: tensor.nbytes for tensor in SPEC.layout(arch, variant)}


def test_layout_of_int4_counts_packed_bits_and_scales() -> None:
    arch = _architecture()
    variant = _variant("int4")
    sizes = _sizes(variant, arch)
    # qkv: (4 + 2 * 2) heads of 32 = 256 outputs of 128 inputs, 4 blocks a row with fp32 scales.
    assert sizes["model.layers.0.attn.qkv_proj.MatMul.weight"] == 256 * 4 * (16 + 4)
    assert sizes["model.embed_tokens.weight"] == 100 * 128 * 4
    kinds: dict[str, int] = {}
    for tensor in SPEC.layout(arch, variant):
        kinds[tensor.kind] = kinds.get(tensor.kind, 0) + tensor.parameters
    assert kinds == {"FLOAT": 100 * 128 + 5 * 128, "int4": arch.parameters - kinds["FLOAT"]}


def test_layout_pads_rows_to_whole_blocks_and_rounds_zero_points_to_bytes() -> None:
    arch = _architecture(hidden_size=96, heads=3, kv_heads=1)
    sizes = _sizes(_variant("int4", arch=arch, symmetric=False, block_size=64), arch)
    # 96 inputs take 2 blocks of 64; their 2 zero points take one byte.
    assert sizes["lm_head.MatMul.weight"] == 100 * (2 * (32 + 4) + 1)


def test_layout_of_gpu_providers_has_fp16_scales_and_of_dml_separate_projections() -> None:
    arch = _architecture()
    sizes = _sizes(_variant("int4", provider="dml"), arch)
    assert sizes["model.layers.1.attn.v_proj.MatMul.weight"] == 64 * 4 * (16 + 2)
    assert sizes["model.layers.2.final_norm_layernorm.weight"] == 128 * 2
    assert SPEC.kv_bytes_per_element(_variant("int4", provider="dml")) == 2
    assert SPEC.kv_bytes_per_element(_variant("int4")) == 4


@pytest.mark.parametrize(
    ("precision", "options", "own"),
    [
        ("int4", {}, False),
        ("int8", {}, True),
        ("fp32", {}, False),
        ("int4", {"provider": "trt_rtx"}, True),
    ],
)
def test_tied_embedding_is_stored_apart_where_it_cannot_be_shared(
    precision: Precision, options: dict[str, Any], own: bool
) -> None:
    arch = _architecture(tied=True)
    names = _sizes(_variant(precision, arch=arch, **options), arch)
    assert ("model.embed_tokens.weight" in names) is own


def test_mixed_layers_are_those_of_llama_cpp() -> None:
    # 32 layers: the first and last 4, and every third between.
    assert mixed_layers(32) == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]
    kinds = {
        tensor.name: tensor.kind
        for tensor in SPEC.layout(
            _architecture(layers=8), _variant("int4", int8_matmuls=["mixed_layers"])
        )
    }
    assert kinds["model.layers.0.attn.qkv_proj.MatMul.weight"] == "int8"
    assert kinds["model.layers.0.mlp.up_proj.MatMul.weight"] == "int4"
    assert kinds["model.layers.1.mlp.down_proj.MatMul.weight"] == "int4"
    assert kinds["lm_head.MatMul.weight"] == "int4"


@pytest.mark.parametrize(
    ("longrope", "positions", "original", "rows"),
    [
        (True, 8192, 4096, 8192 + 4096),
        (True, 4096, 4096, 2 * 4096),  # no longer than the original: two tables all the same
        (False, 4096, 4096, 4096),
        (False, 8192, 4096, 8192),  # nothing reads the original's length
    ],
)
def test_other_bytes_hold_both_rope_tables_of_longrope(
    longrope: bool, positions: int, original: int, rows: int
) -> None:
    source = SourceFiles({"tokenizer.model": 500, "README.md": 9999}, 10, 40, 5, 25, "bpe")
    factors = (1.0,) * 16 if longrope else ()
    found = _architecture(
        max_positions=positions,
        rope=Rope(10000.0, 1.0, factors, factors),
        original_max_positions=original,
    )
    none = _architecture(max_positions=0, original_max_positions=0)
    for variant, item in ((_variant("fp32"), 4), (_variant("fp16", provider="webgpu"), 2)):
        tables = SPEC.other_bytes(found, source, variant) - SPEC.other_bytes(none, source, variant)
        assert tables == 2 * rows * 16 * item


def test_a_graph_holds_as_many_tokens_as_the_model_has_positions() -> None:
    assert SPEC.most_tokens(_architecture(max_positions=512), _variant("fp32")) == 512


def _phi35(**changes: Any) -> Architecture:
    factors = (1.0,) * 48
    sizes = {"hidden_size": 3072, "intermediate_size": 8192, "heads": 32, "kv_heads": 32}
    longrope = {"max_positions": 131072, "rope": Rope(10000.0, 1.0, factors, factors)}
    return _architecture(**{**sizes, **longrope, "layers": 32, "vocab_size": 32064} | changes)


@pytest.mark.parametrize(
    ("precision", "options"),
    [
        ("int4", {}),
        ("int8", {"provider": "webgpu"}),
        ("fp16", {"provider": "webgpu"}),
        ("fp32", {}),
        ("int4", {"provider": "trt_rtx"}),
    ],
)
def test_build_memory_does_not_grow_with_layers(
    precision: Precision, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    variant = _variant(precision, **options)
    bound = SPEC.build_memory(_phi35(), 8 * 10**9, [variant])
    assert bound == SPEC.build_memory(_phi35(layers=2), 10**8, [variant]) < 1 << 30
    # A tokenizer of 200,000 tokens takes 310 MB in the builder.
    wide = SPEC.build_memory(_phi35(vocab_size=200_064), 10**9, [variant])
    assert 270e6 < wide - bound < 1e9


def test_memory_is_that_of_the_largest_variant() -> None:
    arch = _phi35()
    small, large = _variant("int4"), _variant("int4", provider="trt_rtx")
    assert SPEC.build_memory(arch, 0, [small, large]) == SPEC.build_memory(arch, 0, [large])
    fp32 = _variant("fp32")
    assert SPEC.judge_memory(arch, [small, fp32], 256) == SPEC.judge_memory(arch, [fp32], 256)


def test_judging_takes_the_weights_as_the_kernels_pack_them() -> None:
    # Measured at 3.8 B: 3.44 GB for int4, 5.30 GB for int8, before the comparison.
    arch = _phi35()
    int4, int8, fp32 = (SPEC.judge_memory(arch, [_variant(name)], 256) for name in _PRECISIONS)
    assert 3.44e9 < int4 < 4e9
    assert 5.30e9 < int8 < 6e9
    assert 4 * arch.parameters < fp32 < 4 * arch.parameters + 1e9
    mixed = SPEC.judge_memory(arch, [_variant("int4", int8_matmuls=["mixed_layers"])], 256)
    assert int4 < mixed < int8
    more = SPEC.judge_memory(_phi35(vocab_size=200_064), [_variant("int4")], 256) - int4
    assert more > 168_000 * (3 * 256 * 4 + 3072 / 2)


@pytest.mark.parametrize("provider", ["cpu", "cuda", "dml", "webgpu", "trt_rtx"])
def test_what_runs_it_is_a_python_program(provider: str) -> None:
    text = SPEC.run_command(_variant("int4", provider=provider))
    compile(text, "README", "exec")
    assert "max_length" in text
