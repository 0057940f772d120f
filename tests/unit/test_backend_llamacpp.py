"""The llamacpp backend in the core: variants, skips, layout, sizes. No toolchain."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from phibuild.backends.base import SourceFiles
from phibuild.backends.llamacpp.layout import FILE_TYPES, row_bytes, tensors
from phibuild.backends.llamacpp.memory import CHUNK_BYTES, MAX_THREADS
from phibuild.backends.llamacpp.options import LlamaCppOptions
from phibuild.backends.llamacpp.spec import SPEC
from phibuild.schema import Device, Precision, Skip, Variant
from phibuild.worker.architecture import Architecture
from support.devices import SOURCES
from support.shapes import SMALL as ARCH

DEVICE = Device.model_validate(
    {
        "name": "board",
        "title": "A board",
        "class": "iot",
        "memory": "8 GiB",
        "budget": "4 GiB",
        "accelerators": ["cpu"],
        "context_length": 4096,
        "sources": SOURCES,
    }
)


def _variant(precision: Precision, type: str | None = None, arch: Architecture = ARCH) -> Variant:
    options = LlamaCppOptions.model_validate({"type": type})
    found = SPEC.variant(precision, options, DEVICE, arch)
    assert isinstance(found, Variant)
    return found


def _kinds(arch: Architecture, file_type: str, role: str) -> list[str]:
    return [tensor.kind for tensor in tensors(arch, file_type) if f".{role}." in tensor.name]


def _kind(arch: Architecture, file_type: str, name: str) -> str:
    return next(tensor.kind for tensor in tensors(arch, file_type) if tensor.name == name)


@pytest.mark.parametrize(
    ("precision", "type", "name"),
    [
        ("int4", None, "Q4_K_M"),
        ("int4", "Q4_0", "Q4_0"),
        ("int4", "Q5_K_M", "Q5_K_M"),
        ("int4", "IQ4_XS", "IQ4_XS"),
        ("int8", None, "Q8_0"),
        ("fp16", None, "F16"),
        ("fp32", "F32", "F32"),
    ],
)
def test_a_precision_becomes_a_gguf_type(precision: Precision, type: str, name: str) -> None:
    variant = _variant(precision, type)
    assert (variant.name, variant.format, variant.options) == (name, "GGUF", {"type": name})
    assert f"model-{name}.gguf" in SPEC.run_command(variant)


def test_rows_that_are_no_whole_blocks_are_skipped() -> None:
    narrow = replace(ARCH, intermediate_size=500)
    found = SPEC.variant("int4", LlamaCppOptions(), DEVICE, narrow)
    assert isinstance(found, Skip)
    assert "rows of 500" in found.reason
    assert isinstance(SPEC.variant("fp16", LlamaCppOptions(), DEVICE, narrow), Variant)


@pytest.mark.parametrize("options", [{"type": "Q3_K_M"}, {"kind": "Q4_0"}, {"type": 4}])
def test_unknown_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        LlamaCppOptions.model_validate(options)


def test_more_bits_where_the_quantizer_puts_them() -> None:
    # 16 layers: an eighth is 2; of 2 to 13, every third beginning with 4; then the last two
    more = {0, 1, 4, 7, 10, 13, 14, 15}
    for file_type, base in (("Q4_K_M", "Q4_K"), ("Q5_K_M", "Q5_K")):
        expected = ["Q6_K" if layer in more else base for layer in range(16)]
        assert _kinds(ARCH, file_type, "attn_qkv") == expected
        assert _kinds(ARCH, file_type, "ffn_down") == expected
        assert set(_kinds(ARCH, file_type, "ffn_up")) == {base}
        assert set(_kinds(ARCH, file_type, "attn_output")) == {base}
    assert _kinds(ARCH, "IQ4_XS", "ffn_down") == ["Q5_K"] * 2 + ["IQ4_XS"] * 14
    assert set(_kinds(ARCH, "IQ4_XS", "attn_qkv")) == {"IQ4_XS"}
    grouped = replace(ARCH, kv_heads=2)
    assert set(_kinds(grouped, "IQ4_XS", "attn_qkv")) == {"Q5_K"}


def test_an_importance_matrix_changes_the_first_ffn_down_of_some_types() -> None:
    def down(file_type: str, *, imatrix: bool) -> list[str]:
        found = tensors(ARCH, file_type, imatrix=imatrix)
        return [tensor.kind for tensor in found if ".ffn_down." in tensor.name]

    assert down("Q4_0", imatrix=False) == ["Q4_0"] * 16
    assert down("Q4_0", imatrix=True) == ["Q4_1"] * 2 + ["Q4_0"] * 14
    assert down("IQ4_XS", imatrix=True) == ["IQ4_XS"] * 16
    for file_type in ("Q4_K_M", "Q5_K_M"):
        assert tensors(ARCH, file_type, imatrix=True) == tensors(ARCH, file_type)


def test_an_importance_matrix_is_known_by_the_content_of_its_text(tmp_path: Path) -> None:
    variants = []
    for name, text, tokens in (("a", "one", 512), ("b", "one", 512), ("a", "one", 1024),
                               ("c", "two", 512)):  # fmt: skip
        (tmp_path / name).write_text(text, encoding="utf-8")
        options = LlamaCppOptions(imatrix=str(tmp_path / name), imatrix_tokens=tokens)
        found = SPEC.variant("int4", options, DEVICE, ARCH)
        assert isinstance(found, Variant)
        assert found.name == "Q4_K_M-imatrix"
        assert "model-Q4_K_M-imatrix.gguf" in SPEC.run_command(found)
        assert str(tmp_path) not in str(found.model_dump())
        assert found.calibration is not None
        assert found.calibration.path == tmp_path / name
        variants.append(found)
    same, moved, longer, other = variants
    assert same == moved
    assert same.model_dump() == moved.model_dump()
    assert len({str(variant.model_dump()) for variant in (same, longer, other)}) == 3


def test_a_calibration_text_must_be_utf8(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes("caf\u00e9".encode("latin-1"))
    with pytest.raises(ValidationError, match="is not UTF-8 text"):
        LlamaCppOptions(imatrix=str(tmp_path / "latin"))


def test_the_output_matrix_keeps_more_bits_tied_or_not() -> None:
    tied = replace(ARCH, tied=True)
    for file_type in ("Q4_K_M", "Q4_0", "Q5_K_M", "IQ4_XS"):
        base = FILE_TYPES[file_type].base
        assert _kind(ARCH, file_type, "output.weight") == "Q6_K"
        assert _kind(ARCH, file_type, "token_embd.weight") == base
        assert _kind(tied, file_type, "token_embd.weight") == "Q6_K"
        assert "output.weight" not in [tensor.name for tensor in tensors(tied, file_type)]
    assert _kind(tied, "Q8_0", "token_embd.weight") == "Q8_0"


def test_rows_of_other_widths_fall_back_to_smaller_blocks() -> None:
    narrow = replace(ARCH, hidden_size=384, heads=6, kv_heads=2)
    assert _kind(narrow, "Q4_K_M", "blk.3.ffn_up.weight") == "Q5_0"
    assert _kind(narrow, "Q4_K_M", "blk.0.attn_qkv.weight") == "Q8_0"
    assert _kind(narrow, "Q5_K_M", "blk.3.ffn_up.weight") == "Q5_1"
    assert _kind(narrow, "IQ4_XS", "blk.3.ffn_up.weight") == "IQ4_NL"
    assert _kind(narrow, "Q4_K_M", "output.weight") == "Q8_0"
    assert _kind(narrow, "Q4_0", "output.weight") == "Q8_0"
    assert _kind(narrow, "Q4_0", "blk.3.ffn_up.weight") == "Q4_0"
    assert _kind(narrow, "Q4_K_M", "blk.3.ffn_down.weight") == "Q4_K"


def test_layout_counts_every_weight_once_and_its_bytes() -> None:
    for precision, bits in (("int8", 8.5), ("fp16", 16), ("fp32", 32)):
        variant = _variant(precision)  # type: ignore[arg-type]
        layout = SPEC.layout(ARCH, variant)
        assert sum(tensor.parameters for tensor in layout) == ARCH.parameters
        for tensor in layout:
            if tensor.name.endswith("norm.weight"):
                assert (tensor.kind, tensor.nbytes) == ("F32", 256 * 4)
            else:
                assert tensor.nbytes == tensor.parameters * bits / 8
    by_name = {tensor.name: tensor for tensor in SPEC.layout(ARCH, _variant("int4"))}
    assert by_name["blk.2.ffn_up.weight"].nbytes == 1024 * 144
    assert by_name["blk.0.ffn_down.weight"].nbytes == 256 * 2 * 210
    assert row_bytes("IQ4_XS", 512) == 272


def test_other_bytes_are_those_of_the_vocabulary() -> None:
    """Of each token a length, its text and its type, and a score or the merges."""
    variant = _variant("int4")
    scored = SourceFiles({"tokenizer.json": 10**6}, 1000, 7000, 32, 320, "sentencepiece")
    assert SPEC.other_bytes(ARCH, scored, variant) == 7000 + 1000 * (8 + 4 + 4)
    merged = SourceFiles({"tokenizer.json": 10**6}, 1000, 7000, 32, 320, "bpe")
    assert SPEC.other_bytes(ARCH, merged, variant) == 7000 + 1000 * (8 + 4) + 32 * 8 + 320


def test_memory_does_not_grow_with_the_weights() -> None:
    variants = [_variant("int4"), _variant("fp32")]
    large = replace(ARCH, hidden_size=5120, layers=40)
    bound = SPEC.build_memory(ARCH, 10**7, variants[:1])
    assert bound == SPEC.build_memory(large, 3 * 10**10, variants)
    assert MAX_THREADS * CHUNK_BYTES < bound < 450 << 20
    assert SPEC.kv_bytes_per_element(variants[0]) == 2


def test_judging_holds_the_packed_weights_of_one_variant_at_most() -> None:
    arch = replace(ARCH, hidden_size=3072, intermediate_size=8192, layers=32, heads=32, kv_heads=32)
    arch = replace(arch, vocab_size=32064)  # Phi-3.5-mini
    int4, int8, fp32 = (_variant(precision) for precision in ("int4", "int8", "fp32"))
    packed = sum(tensor.nbytes for tensor in SPEC.layout(arch, int4))
    assert packed < SPEC.judge_memory(arch, [int4], 256) < packed + (700 << 20)
    assert SPEC.judge_memory(arch, [fp32], 256) < 700 << 20  # its weights stay in the mapped file
    assert SPEC.judge_memory(arch, [int4, int8, fp32], 256) == SPEC.judge_memory(arch, [int8], 256)
