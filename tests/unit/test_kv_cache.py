"""The type of the KV cache: variants, what the plan counts, what cannot be had."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from phibuild.backends.ort_genai.layout import cache_scales_bytes
from phibuild.backends.registry import backend
from phibuild.config.catalogue import Catalogue
from phibuild.schema import Precision, Skip, Variant
from phibuild.worker.architecture import Architecture
from support.planner import Planner, plan
from support.refusals import Refuse, refuse
from support.shapes import PHI_3_5_MINI

__all__ = ["plan", "refuse"]

ELEMENTS = 2 * 32 * 32 * 96 * 4096
"""Keys and values x layers x heads x their size x tokens: what Phi-3.5-mini caches on a phone."""


def found(
    name: str,
    precision: Precision = "int4",
    device: str = "iphone",
    arch: Architecture = PHI_3_5_MINI,
    **options: Any,
) -> Variant | Skip:
    spec = backend(name)
    made = spec.variant(
        precision, spec.options.model_validate(options), Catalogue().device(device), arch
    )
    assert isinstance(made, (Variant, Skip))
    return made


CACHES: list[tuple[str, str, str, dict[str, Any], str, float]] = [
    ("llamacpp", "iphone", "int4", {"kv_cache": "q8_0"}, "Q4_K_M-kv8", 34 / 32),
    ("llamacpp", "iphone", "int4", {"kv_cache": "q4_0", "type": "Q4_0"}, "Q4_0-kv4", 18 / 32),
    ("llamacpp", "iphone", "fp16", {"kv_cache": "q8_0"}, "F16-kv8", 34 / 32),
    ("ort_genai", "intel_n100", "int4", {"kv_cache": "int8"}, "int4-cpu-b32-kv8", 2),
    ("ort_genai", "intel_n100", "fp32", {"kv_cache": "int8"}, "fp32-cpu-kv8", 2),
    ("openvino", "intel_n100", "int4", {"kv_cache": "u8"}, "int4-asym-g64-kv8", 1 + 8 / 96),
    ("openvino", "intel_n100", "int4", {"kv_cache": "f16"}, "int4-asym-g64-kv16", 2),
    ("openvino", "intel_n100", "fp16", {"kv_cache": "u8"}, "fp16-kv8", 1 + 8 / 96),
    (
        "openvino",
        "ai_pc_intel",
        "int8",
        {"kv_cache": "u8", "target": "gpu"},
        "int8-asym-kv8",
        1 + 8 / 96,
    ),
]


@pytest.mark.parametrize(("name", "device", "precision", "options", "variant", "width"), CACHES)
def test_another_cache_is_another_variant(
    name: str,
    device: str,
    precision: Precision,
    options: dict[str, Any],
    variant: str,
    width: float,
) -> None:
    made = found(name, precision, device, **options)
    assert isinstance(made, Variant)
    assert (made.name, made.options["kv_cache"]) == (variant, options["kv_cache"])
    assert backend(name).kv_bytes_per_element(made) == width


DEFAULTS: list[tuple[str, Precision, str | None]] = [
    ("llamacpp", "int4", None), ("llamacpp", "int4", "f16"), ("llamacpp", "int8", "f16"),
    ("openvino", "int4", None), ("openvino", "fp16", "f16"), ("openvino", "fp32", "f16"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "precision", "cache"), DEFAULTS)
def test_the_usual_cache_changes_no_key(name: str, precision: Precision, cache: str | None) -> None:
    device = {"llamacpp": "iphone"}.get(name, "ai_pc_intel")
    assert found(name, precision, device, kv_cache=cache) == found(name, precision, device)


SAVED: list[tuple[str, str, str, float, float]] = [
    ("iphone", "llamacpp", "q8_0", 2, 34 / 32), ("iphone", "llamacpp", "q4_0", 2, 18 / 32),
    ("ai_pc_intel", "openvino", "f16", 1 + 8 / 96, 2), ("intel_n100", "ort_genai", "int8", 4, 2),
]  # fmt: skip


@pytest.mark.parametrize(("device", "name", "cache", "usual", "width"), SAVED)
def test_the_plan_counts_it(
    device: str, name: str, cache: str, usual: float, width: float, plan: Planner
) -> None:
    cells = []
    for options in ("", f"kv_cache: {cache}"):
        plan.recipe(
            f"model: phi-3.5-mini\ndevices: {{{device}: {{{name}: {{int4: {{{options}}}}}}}}}\n"
        )
        (cell,) = plan(hashed=False).cells
        assert cell.artifact
        assert cell.device_memory_bytes
        cells.append((cell.artifact.estimate.weight_bytes, cell.device_memory_bytes))
    (weights, before), (same, after) = cells
    assert weights == same
    tokens = Catalogue().device(device).context_length
    assert before - after == pytest.approx(ELEMENTS / 4096 * tokens * (usual - width), abs=1)


def test_it_has_keys_of_its_own(plan: Planner) -> None:
    keys = set()
    for options in ("", "kv_cache: f16", "kv_cache: q8_0", "kv_cache: q4_0"):
        plan.recipe(f"devices: {{iphone: {{llamacpp: {{int4: {{{options}}}}}}}}}\n")
        (artifact,) = plan().artifacts
        keys.add((artifact.key, artifact.measure_key))
    assert len(keys) == len({one for key in keys for one in key}) / 2 == 3


def test_heads_that_are_no_whole_blocks_are_skipped() -> None:
    odd = replace(PHI_3_5_MINI, heads=64, kv_heads=64, hidden_size=5120)  # 80 wide, as Phi-2's
    made = found("llamacpp", arch=odd, kv_cache="q8_0")
    assert isinstance(made, Skip)
    assert made.reason == (
        "llama.cpp caches q8_0 in blocks of 32 elements, this model has heads of 80"
    )
    assert isinstance(found("llamacpp", arch=odd, kv_cache="f16"), Variant)


def test_the_npu_has_no_quantized_cache() -> None:
    made = found("openvino", device="copilot_pc_intel", target="npu", kv_cache="u8")
    assert isinstance(made, Skip)
    assert made.reason.startswith("a quantized KV cache is experimental on the NPU")
    usual = found("openvino", device="copilot_pc_intel", target="npu")
    assert found("openvino", device="copilot_pc_intel", target="npu", kv_cache="f16") == usual


@pytest.mark.parametrize(
    ("provider", "words"),
    [("webgpu", "no int8 KV cache for WebGPU"), ("cuda", "for CUDA cannot be judged on a CPU")],
)
def test_providers_without_a_quantized_cache(provider: str, words: str) -> None:
    made = found("ort_genai", device="ai_pc_rtx", provider=provider, kv_cache="int8")
    assert isinstance(made, Skip)
    assert words in made.reason


def test_scales_of_a_cache_are_of_a_text(tmp_path: Path) -> None:
    own, text = tmp_path / "text.txt", "def main():\n"
    own.write_text(text, encoding="utf-8")
    usual = found("ort_genai", device="intel_n100", kv_cache="int8")
    other = found("ort_genai", device="intel_n100", kv_cache="int8", text=str(own))
    assert isinstance(usual, Variant)
    assert isinstance(other, Variant)
    assert other.cache_ranges
    assert other.cache_ranges.path == own
    assert other.options["text"] == hashlib.sha256(text.encode()).hexdigest()
    assert usual.options["text"] != other.options["text"]
    layout = cache_scales_bytes(PHI_3_5_MINI, usual)
    assert layout == 2 * 32 * 3072 * 4
    plain = found("ort_genai", device="intel_n100")
    assert isinstance(plain, Variant)
    assert cache_scales_bytes(PHI_3_5_MINI, plain) == 0


def test_weights_and_cache_have_a_calibration_each_over_one_text(plan: Planner) -> None:
    options = "kv_cache: int8, method: gptq, tokens: 2048"
    plan.recipe(f"devices: {{intel_n100: {{ort_genai: {{int4: {{{options}}}}}}}}}")
    both = plan("evaluation=none")
    (artifact,) = both.artifacts
    assert artifact.variant.name == "int4-cpu-b32-gptq-kv8"
    assert artifact.variant.options["tokens"] == 2048
    steps = {step.kind: step for step in both.calibrations}
    assert set(steps) == {"quantize", "activations"}
    assert {step.calibration.tokens for step in steps.values()} == {2048}
    assert {artifact.activations} == set(steps["quantize"].makes)
    assert artifact.cache_ranges == steps["activations"].key
    needed = both.needs(both.builds[0])
    assert {step.id for step in steps.values()} <= needed
    # Each is another artifact, from what it shares with this one.
    plan.recipe(
        "devices: {intel_n100: {ort_genai: {int4: [{method: gptq, tokens: 2048}, "
        f"{{{options}}}, {{kv_cache: int8}}, {{kv_cache: int8, method: gptq}}]}}}}}}"
    )
    several = plan("evaluation=none")
    assert len({one.key for one in several.artifacts}) == 4
    assert {one.key for one in several.artifacts} >= {artifact.key}
    assert len([step for step in several.calibrations if step.kind == "activations"]) == 2


def test_the_command_says_it() -> None:
    spec = backend("llamacpp")
    made = found("llamacpp", kv_cache="q8_0")
    assert isinstance(made, Variant)
    command = spec.run_command(made)
    assert "--flash-attn on --cache-type-k q8_0 --cache-type-v q8_0" in command
    assert "model-Q4_K_M-kv8.gguf" in command


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("llamacpp", "'f16', 'q8_0' or 'q4_0'"),
        ("openvino", "'u8' or 'f16'"),
        ("ort_genai", "'int8'"),
    ],
)
def test_a_type_that_there_is_not(name: str, words: str, refuse: Refuse) -> None:
    refuse.write(
        "recipes/mine.yaml",
        f"devices:\n  ai_pc_intel:\n    {name}:\n      int4:\n        kv_cache: int7\n",
    )
    (error,) = refuse("plan", "recipe=mine")
    assert f"option 'kv_cache' of {name}" in error
    assert words in error
    assert "mine.yaml:5" in error
