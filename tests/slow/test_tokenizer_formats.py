"""The tokenizer inside each format: what its own runtime makes of texts, and where it stops.

The right ids are Transformers', from a process of its own, of the source as it is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from conftest import FACTS, ROOT
from phibuild.backends.registry import SHIPPED, backend
from phibuild.schema import Device, Variant
from phibuild.worker.architecture import read_architecture
from phibuild.worker.tokenizer_check import read_facts
from support import warm
from support.devices import SOURCES
from support.full_tokenizers import EMBEDDINGS, full_stops, make_full_tokenizer
from support.kinds import some
from support.llamacpp_recording import describe
from support.tokenizer_cases import (
    Change,
    added_tokens_json_alone,
    after_a_gap,
    bos_and_eos,
    decoder_alone,
    make_case,
    named_templates,
    nameless_end,
    no_processor,
    one_step,
    prefix,
    twice,
)

pytestmark = pytest.mark.slow

RunWorker = Callable[[str, dict[str, Any]], list[dict[str, Any]]]

SPACE = "white space"
SIZE = {
    "layers": 1,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}

# What a runtime cannot do, by kind of probe; everything else is equal. llama.cpp always ends at
# </s>; a literal "<0x0A>" is a new line to OpenVINO; Phi-4 takes the white space on both sides of
# all special tokens away, Phi-4-mini that after some, and the user's message begins with spaces.
# LiteRT-LM would put a start token before conversations too.
FULL: dict[str, dict[str, set[str]]] = {
    "phi3": {
        "llamacpp": {"stops"},
        "openvino": {"punctuation"},
        "ort_genai": {"around"},
        "qnn": {"around"},
        "litert": {"around"},
    },
    "phi4": {
        "llamacpp": {"special_spaced", "chat"},
        "ort_genai": {"special_spaced"},
        "qnn": {"special_spaced"},
    },
    "phi4mini": {"llamacpp": {"special_spaced", "chat"}},
}

KEPT = [
    *product(("llamacpp", "ort_genai"), FULL),
    *product(("openvino",), ("phi3", "phi4mini")),
    *product(("litert",), ("phi3", "phi4")),
    *(("qnn", "phi3"), ("mlx", "phi4"), ("coreai", "phi4mini"), ("pytorch", "phi3")),
    ("executorch", "phi4mini"),
]
"""Of formats that take the source's own files as they are, one vocabulary each."""

CASES: dict[str, tuple[str, Change]] = {
    "added_tokens_decoder": ("phi3", decoder_alone),
    "added_tokens.json": ("phi4mini", added_tokens_json_alone),
    "after a gap": ("phi3", after_a_gap),
    "twice": ("phi3", twice),
    "one step": ("phi3", one_step),
    "no post-processor": ("phi3", no_processor),
    "bos and eos": ("phi3", bos_and_eos),
    "prefix first": ("phi3", prefix("first")),
    "prefix never": ("phi3", prefix("never")),
    "prefix always": ("phi3", prefix("always")),
    "nameless end": ("phi4mini", nameless_end),
    "named templates": ("phi4", named_templates),
}


OPTIONS: dict[str, dict[str, Any]] = {"qnn": {"form": "onnx"}}


def _variant(name: str, source: Path) -> tuple[Variant, dict[str, Any]]:
    device = Device.model_validate(
        {"name": "board", "title": "A board", "class": "iot", "memory": "8 GiB",
         "budget": "4 GiB", "accelerators": ["cpu", "metal", "hexagon_npu"], "context_length": 4096,
         "sources": SOURCES}
    )  # fmt: skip
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    arch = read_architecture(config)
    spec = backend(name)
    found = spec.variant("int8", spec.options(**OPTIONS.get(name, {})), device, arch)
    assert isinstance(found, Variant)
    return found, arch.to_json()


def _build(run: RunWorker, name: str, source: Path, facts: Path, output: Path) -> dict[str, Any]:
    """Return the event of building one artifact: "item" with its result, or "failed"."""
    variant, arch = _variant(name, source)
    output.mkdir(parents=True)
    item = {"item": "made", "variant": variant.model_dump(mode="json"), "output": str(output)}
    request = {"verb": "build", "source": str(source), "facts": str(facts), "architecture": arch,
               "model": "made", "threads": 2, "items": [item]}  # fmt: skip
    events = run(name, request)
    (found,) = [event for event in events if event["event"] in ("item", "failed")]
    return found


def _kinds(event: dict[str, Any]) -> set[str]:
    assert event["event"] == "item", event["error"]
    differences = event["result"]["tokenizer"]["differences"]
    assert all(difference["why"] for difference in differences)
    return {difference["kind"] for difference in differences}


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory, facts: Callable[[Path], Path]) -> Any:
    """Return (shape) -> a checkpoint with a tokenizer of full size."""
    made: dict[str, Path] = {}

    def make(shape: str) -> Path:
        if shape not in made:
            stops = full_stops(shape)  # type: ignore[arg-type]
            ids = {"bos_token_id": stops[0], "eos_token_id": stops[0], "pad_token_id": stops[0]}
            folder = tmp_path_factory.mktemp(shape) / "source"
            size = SIZE | {"vocab_size": EMBEDDINGS[shape]}
            make_case(folder, shape, **size, **ids)  # type: ignore[arg-type]
            for path in folder.glob("tokenizer*"):
                path.unlink()
            make_full_tokenizer(folder, shape)  # type: ignore[arg-type]
            path = folder / "generation_config.json"
            config = json.loads(path.read_text(encoding="utf-8"))
            path.write_text(json.dumps(config | {"eos_token_id": stops}), encoding="utf-8")
            made[shape] = folder
        return made[shape]

    return make


@pytest.mark.parametrize(("name", "shape"), some(product(SHIPPED, FULL), KEPT))
@pytest.mark.case(
    "tokenizer",
    "full vocabulary of {shape} (32k, 100k or 200k ids) in {name}",
    "the right ids",
    "probes equal, but for what source.md lists",
)
def test_full_vocabularies_are_equal_in_every_format(
    name: str,
    shape: str,
    full: Callable[[str], Path],
    facts: Callable[[Path], Path],
    run_worker: RunWorker,
    tmp_path: Path,
) -> None:
    source = full(shape)
    event = _build(run_worker, name, source, facts(source), tmp_path / "made")
    assert _kinds(event) == FULL[shape].get(name, set())
    assert event["result"]["tokenizer"]["probes"] > 70


@pytest.fixture(scope="module")
def cases(
    tmp_path_factory: pytest.TempPathFactory, toolchain_python: Callable[[str], Path]
) -> Path:
    """Return a folder that has a checkpoint and, in "facts", its facts for every case."""
    folder = tmp_path_factory.mktemp("cases")
    words: list[str] = []
    for case, (shape, change) in CASES.items():
        ends = {"eos_token_id": [1620, 1599]} if case == "nameless end" else {}
        source = make_case(folder / case, shape, change, **ends)  # type: ignore[arg-type]
        (source / "facts").mkdir()
        words += [str(source), str(source / "facts")]
    (folder / "nameless end" / "generation_config.json").unlink()
    source = folder / "named templates"
    (source / "chat_template.jinja").rename(source / "rag.jinja")
    done = warm.run(
        [toolchain_python("pytorch"), "-c", FACTS, *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def _gguf(run: RunWorker, cases: Path, case: str, output: Path) -> tuple[set[str], dict[str, Any]]:
    """Return the kinds of probes that differ in a case's GGUF file, and its key/values."""
    source = cases / case
    event = _build(run, "llamacpp", source, source / "facts", output)
    (file,) = output.glob("*.gguf")
    return _kinds(event), describe(file)["metadata"]


@pytest.mark.parametrize(
    "case", ["added_tokens_decoder", "added_tokens.json", "after a gap", "twice"]
)
@pytest.mark.case(
    "tokenizer",
    "added tokens in one place alone, or odd: {case}",
    "tokens",
    "tokens in GGUF too",
)
def test_added_tokens_of_every_file_are_in_gguf(
    case: str, cases: Path, run_worker: RunWorker, tmp_path: Path
) -> None:
    facts = read_facts(cases / case / "facts")
    texts = [probe.text for probe in facts.probes if probe.kind == "special"]
    new = {"after a gap": "<|far|>", "twice": "<|twin|>"}.get(case, "<|first|>")
    assert f"left{new}right" in texts  # Transformers has it, so it was compared
    kinds, _ = _gguf(run_worker, cases, case, tmp_path / "made")
    assert "special" not in kinds


@pytest.mark.parametrize(
    ("case", "added"),
    [
        ("one step", (False, False)),
        ("no post-processor", (False, False)),
        ("bos and eos", (True, True)),
        ("added_tokens_decoder", (True, False)),
        ("nameless end", (False, False)),
    ],
)
@pytest.mark.case(
    "tokenizer",
    "BOS and EOS: {case}",
    "as the post-processor says",
    "the same in GGUF",
)
def test_gguf_adds_what_transformers_adds(
    case: str, added: tuple[bool, bool], cases: Path, run_worker: RunWorker, tmp_path: Path
) -> None:
    facts = read_facts(cases / case / "facts")
    assert (bool(facts.start), bool(facts.end)) == added
    kinds, values = _gguf(run_worker, cases, case, tmp_path / "made")
    assert "around" not in kinds
    found = tuple(values[f"tokenizer.ggml.add_{role}_token"] for role in ("bos", "eos"))
    assert found == added
    if facts.start:
        assert [values["tokenizer.ggml.bos_token_id"]] == facts.start


@pytest.mark.parametrize(
    ("case", "equal"),
    [
        # llama.cpp has no space before the first text alone, which no chat begins with
        ("prefix first", {"chat", "empty"}),
        ("prefix never", {"chat", "special", "special_spaced", SPACE, "script", "code"}),
        ("prefix always", {"chat", "special", "script", "code"}),
    ],
)
@pytest.mark.parametrize("name", ["llamacpp", "ort_genai"])
@pytest.mark.case(
    "tokenizer",
    "sentencepiece, {case}, in {name}",
    "spaces as the scheme says",
    "chats are equal; what differs is in report and card",
)
def test_where_sentencepiece_puts_spaces(
    name: str, case: str, equal: set[str], cases: Path, run_worker: RunWorker, tmp_path: Path
) -> None:
    source = cases / case
    kinds = _kinds(_build(run_worker, name, source, source / "facts", tmp_path / "made"))
    assert not equal & kinds


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.case(
    "tokenizer",
    "several eos_token_id in config.json, no generation_config.json: {name}",
    "all end generation",
    "all end generation",
)
def test_the_list_in_config_json_ends_generation_in_every_format(
    name: str, cases: Path, run_worker: RunWorker, tmp_path: Path
) -> None:
    """There is no generation_config.json, and the tokenizer names no end."""
    source = cases / "nameless end"
    assert read_facts(source / "facts").stops == [1620, 1599]
    assert "stops" not in _kinds(
        _build(run_worker, name, source, source / "facts", tmp_path / "made")
    )


@pytest.mark.case(
    "tokenizer",
    "named chat templates",
    None,
    "in GGUF as tokenizer.chat_template.NAME",
)
def test_named_templates_are_in_gguf(cases: Path, run_worker: RunWorker, tmp_path: Path) -> None:
    _, values = _gguf(run_worker, cases, "named templates", tmp_path / "made")
    found = {key for key in values if key.startswith("tokenizer.chat")}
    assert found == {
        "tokenizer.chat_template",
        "tokenizer.chat_template.tool_use",
        "tokenizer.chat_templates",
    }


@pytest.mark.case(
    "tokenizer",
    "a stray tokenizer.model beside a byte-level BPE",
    None,
    "not read: GGUF is the same as without",
)
def test_a_stray_sentencepiece_model_changes_nothing(
    cases: Path, run_worker: RunWorker, tmp_path: Path
) -> None:
    source = cases / "nameless end"  # byte-level
    _, clean = _gguf(run_worker, cases, "nameless end", tmp_path / "clean")
    stray = source / "tokenizer.model"
    stray.write_bytes((cases / "twice" / "tokenizer.model").read_bytes())
    try:
        _, values = _gguf(run_worker, cases, "nameless end", tmp_path / "stray")
    finally:
        stray.unlink()
    assert values == clean


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.case(
    "tokenizer",
    "two tokens swapped in the artifact: {name}",
    "other ids",
    "the cell fails",
)
def test_an_artifact_with_another_tokenizer_fails(
    name: str, cases: Path, run_worker: RunWorker, tmp_path: Path
) -> None:
    """Facts of one source, files of another in which two tokens are swapped: each check sees it."""
    source = make_case(tmp_path / "source", "phi4mini", _two_swapped, eos_token_id=[1620, 1599])
    facts = tmp_path / "facts"
    facts.mkdir()
    right = cases / "nameless end" / "facts"
    (facts / "probes.json").write_bytes((right / "probes.json").read_bytes())
    (facts / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    event = _build(run_worker, name, source, facts, tmp_path / "made")
    assert event["event"] == "failed"
    assert event["error"].startswith("the artifact's tokenizer is not the checkpoint's: ")
    assert "as in Transformers" in event["error"]


def _two_swapped(documents: dict[str, dict[str, Any]]) -> None:
    nameless_end(documents)
    vocabulary = documents["tokenizer.json"]["model"]["vocab"]
    vocabulary["r"], vocabulary["e"] = vocabulary["e"], vocabulary["r"]
