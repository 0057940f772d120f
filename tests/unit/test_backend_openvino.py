"""The openvino spec: variants, skips, and layouts counted by hand."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from phibuild.backends.base import SourceFiles
from phibuild.backends.openvino.options import OpenVinoOptions
from phibuild.backends.openvino.spec import SPEC
from phibuild.schema import Device, Misfit, Precision, Skip, Variant
from phibuild.worker.architecture import Architecture, read_architecture
from support.devices import SOURCES


def device(*accelerators: str) -> Device:
    return Device.model_validate(
        {
            "name": "pc",
            "title": "Test PC",
            "class": "copilot_pc",
            "memory": "16 GiB",
            "budget": "8 GiB",
            "accelerators": accelerators or ("cpu", "openvino_gpu", "openvino_npu"),
            "context_length": 4096,
            "sources": SOURCES,
        }
    )


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


def choose(precision: Precision, **options: Any) -> Variant | Skip | Misfit:
    return SPEC.variant(precision, OpenVinoOptions(**options), device(), architecture())


def built(precision: Precision, **options: Any) -> Variant:
    variant = choose(precision, **options)
    assert isinstance(variant, Variant)
    return variant


@pytest.mark.parametrize(
    ("precision", "options", "name", "stored"),
    [
        ("int4", {}, "int4-asym-g64", {"mode": "int4_asym", "group_size": 64}),
        ("int4", {"group_size": 32}, "int4-asym-g32", {"mode": "int4_asym", "group_size": 32}),
        ("int4", {"mode": "int4_sym"}, "int4-sym-g128", {"mode": "int4_sym", "group_size": 128}),
        (
            "int4",
            {"mode": "int4_sym", "group_size": -1},
            "int4-sym-cw",
            {"mode": "int4_sym", "group_size": -1},
        ),
        ("int4", {"target": "npu"}, "int4-sym-g128", {"mode": "int4_sym", "group_size": 128}),
        ("int8", {}, "int8-asym", {"mode": "int8_asym"}),
        ("int8", {"target": "npu"}, "int8-sym", {"mode": "int8_sym"}),
        ("fp16", {}, "fp16", {"mode": "fp16"}),
        ("fp32", {}, "fp32", {"mode": "fp32"}),
    ],
)
def test_variants(
    precision: Precision, options: dict[str, Any], name: str, stored: dict[str, Any]
) -> None:
    variant = built(precision, **options)
    assert (variant.backend, variant.name, variant.format) == ("openvino", name, "OpenVINO IR")
    assert variant.options == {**stored, "target": options.get("target", "cpu")}


@pytest.mark.parametrize(
    ("precision", "options", "part"),
    [
        ("int4", {"target": "npu", "mode": "int4_asym"}, "the NPU takes symmetric weights"),
        ("int8", {"target": "npu", "mode": "int8_asym"}, "use mode int8_sym"),
        ("int4", {"target": "npu", "group_size": 64}, "groups of 128 or whole rows"),
    ],
)
def test_combinations_that_cannot_work(
    precision: Precision, options: dict[str, Any], part: str
) -> None:
    skip = choose(precision, **options)
    assert isinstance(skip, Skip)
    assert part in skip.reason


@pytest.mark.parametrize("target", ["npu", "gpu"])
def test_target_needs_its_accelerator(target: str) -> None:
    options = OpenVinoOptions.model_validate({"target": target})
    skip = SPEC.variant("int8", options, device("cpu", "cuda"), architecture())
    assert isinstance(skip, Skip)
    assert f"openvino_{target}" in skip.reason
    assert "Test PC has cpu, cuda" in skip.reason


def test_group_that_does_not_divide_is_skipped_and_rows_always_work() -> None:
    arch = architecture(intermediate_size=224)
    skip = SPEC.variant("int4", OpenVinoOptions(), device(), arch)
    assert isinstance(skip, Skip)
    assert "groups of 64 do not divide intermediate_size (224)" in skip.reason
    assert isinstance(SPEC.variant("int4", OpenVinoOptions(group_size=32), device(), arch), Variant)
    assert isinstance(SPEC.variant("int4", OpenVinoOptions(group_size=-1), device(), arch), Variant)


@pytest.mark.parametrize("options", [{"group_size": 48}, {"mode": "nf4"}, {"ratio": 0.8}])
def test_unknown_options_and_values_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        OpenVinoOptions.model_validate(options)


QKV, OUT, GATE_UP, DOWN = 384 * 128, 128 * 128, 512 * 128, 128 * 256
LAYER = QKV + OUT + GATE_UP + DOWN
EMBEDDING = 100 * 128


@pytest.mark.parametrize(
    ("precision", "options", "types", "nbytes"),
    [
        # u4: half a byte a weight, and 2.5 bytes of scale and zero point for each 64; u8: a byte a
        # weight, and 3 for each of 2 x 100 rows; norms: 3 x 128 f32.
        (
            "int4",
            {},
            {"u4": LAYER, "u8": 2 * EMBEDDING, "f32": 384},
            LAYER // 2 + LAYER // 64 * 5 // 2 + 2 * EMBEDDING + 600 + 1536,
        ),
        (
            "int4",
            {"mode": "int4_sym"},
            {"i4": LAYER, "u8": 2 * EMBEDDING, "f32": 384},
            LAYER // 2 + LAYER // 128 * 2 + 2 * EMBEDDING + 600 + 1536,
        ),
        (
            "int4",
            {"mode": "int4_sym", "group_size": -1},
            {"i4": LAYER, "u8": 2 * EMBEDDING, "f32": 384},
            LAYER // 2 + 2 * (384 + 128 + 512 + 128) + 2 * EMBEDDING + 600 + 1536,
        ),
        (
            "int8",
            {},
            {"u8": LAYER + 2 * EMBEDDING, "f32": 384},
            LAYER + 2 * EMBEDDING + 3 * (384 + 128 + 512 + 128 + 200) + 1536,
        ),
        (
            "int8",
            {"mode": "int8_sym"},
            {"i8": LAYER + 2 * EMBEDDING, "f32": 384},
            LAYER + 2 * EMBEDDING + 2 * (384 + 128 + 512 + 128 + 200) + 1536,
        ),
        (
            "fp16",
            {},
            {"f16": LAYER + 2 * EMBEDDING + 384},
            2 * (LAYER + 2 * EMBEDDING + 384),
        ),
        (
            "fp32",
            {},
            {"f32": LAYER + 2 * EMBEDDING + 384},
            4 * (LAYER + 2 * EMBEDDING + 384),
        ),
    ],
)
def test_layout(
    precision: Precision, options: dict[str, Any], types: dict[str, int], nbytes: int
) -> None:
    layout = SPEC.layout(architecture(), built(precision, **options))
    sums: dict[str, int] = {}
    for tensor in layout:
        sums[tensor.kind] = sums.get(tensor.kind, 0) + tensor.parameters
    assert sums == types
    assert sum(tensor.nbytes for tensor in layout) == nbytes
    assert sum(sums.values()) == architecture().parameters


def test_tied_embedding_is_stored_once() -> None:
    arch = architecture(tie_word_embeddings=True)
    layout = SPEC.layout(arch, built("int4"))
    assert sum(tensor.parameters for tensor in layout if tensor.kind == "u8") == EMBEDDING


@pytest.mark.parametrize(
    ("mode", "layers", "partial", "xml"),
    [  # openvino_model.xml as it was written of tests' checkpoints
        ("fp32", 4, 1.0, 303_002),
        ("fp16", 8, 1.0, 572_398),
        ("int8_sym", 8, 1.0, 608_633),
        ("int8_asym", 8, 1.0, 653_828),
        ("int4_sym", 4, 1.0, 354_614),
        ("int4_asym", 4, 1.0, 377_369),
        ("int4_asym", 8, 0.75, 765_806),
        ("fp32", 8, 0.75, 626_351),
    ],
)
def test_other_bytes_hold_the_graphs(mode: str, layers: int, partial: float, xml: int) -> None:
    none = SourceFiles({}, 0, 0, 0, 0, "bpe")
    variant = Variant(
        backend="openvino", precision="int4", name="x", format="x", options={"mode": mode}
    )
    arch = architecture(num_hidden_layers=layers, partial_rotary_factor=partial)
    tokenizers = 27_564 + 11_467
    assert SPEC.other_bytes(arch, none, variant) == pytest.approx(xml + tokenizers, rel=0.05)


def test_other_bytes_count_files_and_grow_with_layers_and_vocabulary() -> None:
    def other(tokens: int, copied: int, **overrides: Any) -> int:
        files = {"tokenizer.json": copied, "config.json": 700, "model.safetensors": 10**9}
        source = SourceFiles(files, tokens, 6 * tokens, tokens, 7 * tokens, "bpe")
        return SPEC.other_bytes(architecture(**overrides), source, built("int4"))

    base = other(1000, 0)
    assert other(1000, 5000) == base + 5000
    # Two models with 8 bytes of offsets a token and its text, 16 a merge and its halves.
    assert other(2000, 0) - base == pytest.approx(
        1000 * (2 * (8 + 0.87 * 6) + 16 + 0.87 * 6), abs=2
    )
    layer = other(1000, 0, num_hidden_layers=2) - base
    assert 60_000 < layer < 90_000  # of the .xml
    assert other(1000, 0, num_hidden_layers=5) == base + 4 * layer


def test_build_memory_is_the_same_whatever_is_built() -> None:
    def bound(layers: int, *precisions: Precision, **overrides: Any) -> int:
        arch = architecture(num_hidden_layers=layers, **overrides)
        return SPEC.build_memory(arch, 2 * arch.parameters, [built(name) for name in precisions])

    assert bound(1, "int4") == bound(40, "int4", "int8", "fp16", "fp32") < 1 << 29
    # Converting the tokenizer takes what its tokens do: 292 MiB with Phi-4-mini's.
    assert bound(1, "int4", vocab_size=200_064) - bound(1, "int4") == pytest.approx(293e6, rel=0.06)


def test_judging_takes_the_weights_of_the_largest_as_they_are_stored() -> None:
    arch = architecture(hidden_size=3072, intermediate_size=8192, num_hidden_layers=32)
    int4, int8, fp32 = (built(name) for name in ("int4", "int8", "fp32"))
    bounds = [SPEC.judge_memory(arch, [variant], 256) for variant in (int4, int8, fp32)]
    assert SPEC.judge_memory(arch, [fp32, int4], 256) == bounds[2]
    stored = [
        sum(tensor.nbytes for tensor in SPEC.layout(arch, variant))
        for variant in (int4, int8, fp32)
    ]
    assert bounds[2] - bounds[1] == stored[2] - stored[1]
    assert stored[0] < bounds[0] < bounds[1]
    vocabulary = SPEC.judge_memory(architecture(vocab_size=200_064), [int4], 256)
    assert vocabulary > SPEC.judge_memory(architecture(), [int4], 256) + 4 * 256 * 5 * 200_000


def test_kv_cache_and_command_follow_the_target() -> None:
    assert 1.0 < SPEC.kv_bytes_per_element(built("int4")) < 1.2
    assert SPEC.kv_bytes_per_element(built("int4", target="gpu")) == 2.0
    assert SPEC.kv_bytes_per_element(built("fp16")) == 2.0
    command = SPEC.run_command(built("int4", target="npu"))
    assert 'LLMPipeline(".", "NPU")' in command
    compile(command, "README", "exec")
