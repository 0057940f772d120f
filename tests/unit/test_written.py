"""The specs of formats whose cache is part of the artifact: its size, and what cannot be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from phibuild.backends.common import facts_bytes, tokenizer_bytes
from phibuild.backends.registry import backend
from phibuild.checkpoints.facts import load_checkpoint
from phibuild.schema import Misfit, Precision, Skip, Variant
from phibuild.worker.architecture import Architecture
from support.written_build import device
from unit.test_backend_litert import LONGROPE, architecture

CACHED = ("litert", "executorch")


def choose(
    name: str,
    precision: Precision,
    *,
    device_context: int = 4096,
    arch: Architecture | None = None,
    **options: Any,
) -> Variant | Skip | Misfit:
    spec = backend(name)
    made = spec.options(**options)
    return spec.variant(precision, made, device(device_context), arch or architecture())


@pytest.mark.parametrize("name", CACHED)
@pytest.mark.parametrize(
    ("device_context", "asked", "overrides", "expected"),
    [
        (8192, None, {}, 4096),  # the most by default
        (2048, None, {}, 2048),
        (1000, None, {}, 896),  # whole chunks
        (4096, None, LONGROPE, 2048),  # the short factors
        (4096, None, {"sliding_window": 2047}, 1920),
        (2048, 256, {}, 256),
    ],
)
def test_context(
    name: str, device_context: int, asked: int | None, overrides: dict[str, Any], expected: int
) -> None:
    arch = architecture(**overrides)
    options = {"context": asked} if asked else {}
    variant = choose(name, "int8", device_context=device_context, arch=arch, **options)
    assert isinstance(variant, Variant)
    assert variant.options["context"] == expected
    assert variant.name == ("int8-c256" if asked else "int8")
    limit = backend(name).context_limit(arch, variant)
    assert limit is None if expected == 4096 else limit and limit.tokens == expected


@pytest.mark.parametrize("name", CACHED)
@pytest.mark.parametrize(
    ("overrides", "options", "reason"),
    [
        (LONGROPE, {"context": 4096}, "a context of 4096 is not 128 to 2048 tokens"),
        ({"sliding_window": 512}, {"context": 1024}, "reaches back over a window"),
        ({"max_position_embeddings": 96}, {}, "made for 128 tokens at least, not 96: the model"),
        ({}, {"group_size": 256}, "groups of 256 do not divide hidden_size (128)"),
    ],
)
def test_skips(name: str, overrides: dict[str, Any], options: dict[str, Any], reason: str) -> None:
    skip = choose(name, "int4", arch=architecture(**overrides), **options)
    assert isinstance(skip, Skip)
    assert reason in skip.reason


@pytest.mark.parametrize(
    ("name", "options"), [("litert", {}), ("executorch", {}), ("qnn", {"form": "onnx"})]
)
def test_a_device_with_too_short_a_context_is_told_by_its_own(
    name: str, options: dict[str, Any]
) -> None:
    skip = choose(name, "int8", device_context=100, **options)
    assert skip == Skip(
        reason="a graph is made for 128 tokens at least, and Phone has a context_length of 100: "
        "make that longer, or set context"
    )
    made = choose(name, "int8", device_context=100, context=128, **options)
    assert isinstance(made, Variant)


def test_a_context_that_is_the_runners_is_not_the_devices() -> None:
    made = choose("coreai", "int8", device_context=10)
    assert isinstance(made, Variant)
    assert made.options["context"] == 4096


def test_tokenizer_json_counts_as_it_is_written(checkpoint: Callable[..., Path]) -> None:
    """Without the white space that the source's has: half of it."""
    folder = checkpoint("phi3")
    source = load_checkpoint(folder, "x", "x").files
    whole = (folder / "tokenizer.json").read_text(encoding="utf-8")
    text = json.dumps(json.loads(whole), ensure_ascii=False, separators=(",", ":"))
    assert len(text) < 0.6 * len(whole)
    assert tokenizer_bytes(source) == pytest.approx(len(text.encode()), rel=0.02)
    more = facts_bytes(source) - sum(
        (folder / name).stat().st_size for name in source.files
        if name.endswith((".json", ".jinja", ".model")) and name != "tokenizer.json"
    )  # fmt: skip
    assert more == tokenizer_bytes(source)
