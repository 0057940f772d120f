"""GGUF for the NPU of a Snapdragon: what is made for it, and what the card says of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from phibuild.backends.llamacpp.spec import SPEC
from phibuild.config.catalogue import Catalogue
from phibuild.schema import Precision, Variant
from phibuild.worker.architecture import Architecture
from support.shapes import PHI_3_5_MINI

PHI_4 = replace(
    PHI_3_5_MINI,
    hidden_size=5120,
    intermediate_size=17920,
    layers=40,
    heads=40,
    kv_heads=10,
    vocab_size=100352,
)


def made(
    device: str = "android_flagship",
    precision: Precision = "int4",
    arch: Architecture = PHI_3_5_MINI,
    **options: Any,
) -> Variant:
    found = SPEC.variant(
        precision, SPEC.options.model_validate(options), Catalogue().device(device), arch
    )
    assert isinstance(found, Variant)
    return found


def card(variant: Variant, arch: Architecture = PHI_3_5_MINI) -> str:
    return SPEC.card_sections(arch, variant).get("On a Hexagon NPU", "")


@pytest.mark.parametrize("device", ["android_flagship", "copilot_pc_snapdragon"])
@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "Q4_0-gptq"),
        ({"type": None, "method": None}, "Q4_0-gptq"),
        ({"method": "gptq"}, "Q4_0-gptq"),
        ({"method": "nearest"}, "Q4_0"),
        ({"kv_cache": "q8_0"}, "Q4_0-gptq-kv8"),
        ({"imatrix": "embedded"}, "Q4_0-imatrix"),
        ({"target_size": "2.4 GB"}, "Q4_0-2.4GB"),
        ({"target_size": "2.4 GB", "method": "gptq"}, "Q4_0-gptq-2.4GB"),
        ({"type": "Q4_K_M"}, "Q4_K_M"),
        ({"type": "Q4_0"}, "Q4_0"),
    ],
)
def test_int4_is_what_the_npu_takes(device: str, options: dict[str, Any], name: str) -> None:
    assert made(device, **options).name == name


def test_other_devices_and_precisions_have_what_they_had() -> None:
    assert made("android_midrange").name == "Q4_K_M"
    assert made("mac").name == "Q4_K_M"
    assert made(precision="int8").name == "Q8_0"


def test_it_is_the_variant_that_these_options_make_anywhere() -> None:
    assert made() == made("mac", type="Q4_0", method="gptq")


def test_the_card_says_what_runs_where() -> None:
    text = card(made())
    layers = 32 * (9216 * 3072 + 3072 * 3072 + 16384 * 3072 + 3072 * 8192)
    assert f"On the NPU: {layers * 18 / 32 / 1e9:.2f} GB of matrices in Q4_0" in text
    head = 32064 * 3072 * 210 / 256
    assert f"output.weight in Q6_K ({head / 1e6:.1f} MB), which" in text
    embeddings = 32064 * 3072 * 18 / 32
    assert f"in which it looks rows up ({embeddings / 1e6:.1f} MB)" in text
    assert "all of it fits one session" in text
    assert f"top, {1024 * 2 * 32 * 3072 * 2 / 1e6:.0f} MB for 1,024 tokens" in text
    assert "--device HTP0 -ngl 99" in text
    assert "GGML_HEXAGON_NDEV" not in text
    assert "--cache-type" not in text
    assert "no NPU has run it" in text


def test_a_large_model_takes_several_sessions() -> None:
    text = card(made(arch=PHI_4), PHI_4)
    # 7.67 GB of layers and a head of 0.42 GB, 3.5 GB a session.
    assert "GGML_HEXAGON_NDEV=3 llama-cli" in text
    assert "--device HTP0,HTP1,HTP2 " in text
    assert "takes 3 sessions" in text


def test_tied_embeddings_are_there_twice() -> None:
    tied = replace(PHI_3_5_MINI, tied=True, vocab_size=200064)
    text = card(made(arch=tied), tied)
    megabytes = 200064 * 3072 * 210 / 256 / 1e6
    assert f"looks rows up ({megabytes:.0f} MB); token_embd.weight in Q6_K ({megabytes:.0f}" in text


def test_the_cache_type_of_the_file_is_the_cards() -> None:
    text = card(made(kv_cache="q8_0"))
    assert "--cache-type-k q8_0 --cache-type-v q8_0" in text
    assert f"top, {1024 * 2 * 32 * 3072 * 34 / 32 / 1e6:.0f} MB for 1,024 tokens" in text


def test_int8_runs_there_too() -> None:
    text = card(made(precision="int8"))
    assert "of matrices in Q8_0" in text
    assert "output.weight" not in text  # it is Q8_0 as the layers are


@pytest.mark.parametrize(
    ("precision", "options"),
    [
        ("int4", {"type": "Q5_K_M"}),  # its kernels have no Q5_K
        ("int4", {"type": "IQ4_XS"}),
        ("int4", {"type": "Q4_K_M"}),
        ("fp16", {}),
    ],
)
def test_the_card_promises_nothing_of_other_types(
    precision: Precision, options: dict[str, Any]
) -> None:
    assert not card(made("mac", precision, **options))
