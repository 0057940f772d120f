"""What the llamacpp backend writes into a GGUF file besides weights. No toolchain."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from phibuild.backends.llamacpp.header import Value, encode_header, encode_value
from phibuild.backends.llamacpp.layout import Tensor
from phibuild.backends.llamacpp.metadata import general_name, model_values, size_label
from phibuild.backends.llamacpp.pretokenizer import pretokenizer_name
from phibuild.backends.llamacpp.vocabulary import read_vocabulary
from phibuild.worker.architecture import Rope
from phibuild.worker.protocol import WorkerError
from phibuild.worker.tokenizer_check import Facts
from support.shapes import SMALL as ARCH

TOKENIZERS = Path(__file__).resolve().parents[1] / "data" / "tokenizers"


def test_header_of_one_value_and_one_tensor() -> None:
    tensor = Tensor("a", "a", (2, 32), "Q8_0")
    key = struct.pack("<Q1sI", 1, b"k", 4) + struct.pack("<I", 7)
    info = struct.pack("<Q1sI2QIQ", 1, b"a", 2, 32, 2, 8, 0)
    start = b"GGUF" + struct.pack("<IQQ", 3, 1, 1)
    expected = start + key + info
    made = encode_header([Value("k", "u32", 7)], [tensor])
    assert made == expected + bytes(-len(expected) % 32)
    with pytest.raises(ValueError, match="twice"):
        encode_header([Value("k", "u32", 7), Value("k", "u32", 8)], [])


def test_arrays_of_numbers_and_of_strings() -> None:
    numbers = encode_value(Value("n", "array[f32]", [0.5, -1.0]))
    assert numbers == struct.pack("<Q1sIIQ2f", 1, b"n", 9, 6, 2, 0.5, -1.0)
    texts = encode_value(Value("s", "array[str]", [b"a", "é"]))
    assert texts == struct.pack("<Q1sIIQ", 1, b"s", 9, 8, 2) + b"".join(
        struct.pack("<Q", len(raw)) + raw for raw in (b"a", "é".encode())
    )


def test_metadata_of_longrope_and_of_none() -> None:
    values = {value.key: value.value for value in model_values(ARCH, "Q4_K_M", "x", {})}
    assert values["general.architecture"] == "phi3"
    assert values["general.file_type"] == 15
    assert values["phi3.attention.sliding_window"] == 0
    assert values["phi3.rope.scaling.attn_factor"] == pytest.approx(1.190238)
    plain = replace(ARCH, max_positions=4096, rope=Rope(250000.0, 1.0, (), ()))
    values = {value.key: value.value for value in model_values(plain, "F16", "x", {"top_k": 50})}
    assert "phi3.rope.scaling.attn_factor" not in values
    assert values["phi3.rope.scaling.original_context_length"] == 4096
    assert values["general.sampling.top_k"] == 50


@pytest.mark.parametrize(
    ("model", "strips", "name"),
    [
        ("phi-3.5-mini", True, "phi-3.5-mini"),
        ("phi-3.5-mini", False, "Phi 3.5-mini"),
        ("my-model", True, "my-model (Phi-3)"),
        ("my-model", False, "my-model"),
        ("org/Phi3-tune", False, "org/Phi 3-tune"),
    ],
)
def test_the_name_says_what_the_tokenizer_does(model: str, strips: bool, name: str) -> None:
    assert general_name(model, strips_after_special=strips) == name


@pytest.mark.parametrize(
    ("parameters", "label"),
    [(4_491_520, "4.5M"), (3_821_079_552, "3.8B"), (14_659_507_200, "15B"), (900_000, "900K")],
)
def test_size_label(parameters: int, label: str) -> None:
    assert size_label(parameters) == label


@pytest.mark.parametrize(("folder", "name"), [("phi4", "dbrx"), ("phi4mini", "gpt-4o")])
def test_pretokenizer_by_its_regular_expression(folder: str, name: str) -> None:
    tokenizer = json.loads((TOKENIZERS / folder / "tokenizer.json").read_text(encoding="utf-8"))
    assert pretokenizer_name(tokenizer) == name
    tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\w+"
    with pytest.raises(WorkerError, match=r"none that phibuild knows .*w\+"):
        pretokenizer_name(tokenizer)


def test_pretokenizers_that_llama_cpp_does_not_have() -> None:
    with pytest.raises(WorkerError, match="Whitespace"):
        pretokenizer_name({"pre_tokenizer": {"type": "Whitespace"}})
    assert pretokenizer_name({"pre_tokenizer": {"type": "ByteLevel"}}) == "gpt-2"
    with pytest.raises(WorkerError, match="ignore_merges"):
        pretokenizer_name(
            {"pre_tokenizer": {"type": "ByteLevel"}, "model": {"ignore_merges": True}}
        )


def _facts(folder: Path, tokenizer: dict[str, Any], **found: Any) -> Facts:
    """Return facts of a tokenizer without probes; config.json is written beside its file."""
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"eos_token_id": [1, 2]}), encoding="utf-8")
    none: dict[str, Any] = {"probes": (), "ids": (), "start": [], "end": [], "stops": [],
                            "special": {}, "templates": {}}  # fmt: skip
    return Facts(**{**none, **found}, tokenizer=folder / "tokenizer.json")


def _values(facts: Facts, vocab_size: int) -> dict[str, Any]:
    vocabulary = read_vocabulary(facts, facts.tokenizer.parent, vocab_size)
    return {value.key.removeprefix("tokenizer."): value.value for value in vocabulary.values}


def _small_bpe() -> dict[str, Any]:
    return {
        "added_tokens": [
            {"id": 3, "content": "<|end|>", "special": False, "rstrip": True},
            {"id": 4, "content": "two▁words", "special": False},
        ],
        "pre_tokenizer": {"type": "ByteLevel"},
        "post_processor": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]},
    }


def test_vocabulary_of_byte_level_bpe(tmp_path: Path) -> None:
    facts = _facts(
        tmp_path, _small_bpe(), special={"eos": 3}, stops=[3], templates={"default": "{{x}}"}
    )
    values = _values(facts, 6)
    assert values["ggml.tokens"] == [b"a", b"b", b"ab", b"<|end|>", b"two words", b"[PAD5]"]
    assert values["ggml.token_type"] == [1, 1, 1, 3, 4, 5]
    assert values["ggml.merges"] == ["a b"]
    assert values["ggml.eos_token_id"] == 3
    assert values["ggml.add_bos_token"] is False
    assert values["ggml.add_eos_token"] is False
    assert values["chat_template"] == "{{x}}"
    assert "chat_templates" not in values
    assert not read_vocabulary(facts, tmp_path, 6).strips_after_special


def test_vocabulary_larger_than_the_embedding_is_refused(tmp_path: Path) -> None:
    facts = _facts(tmp_path, _small_bpe())
    with pytest.raises(WorkerError, match="has id 4, the model has 4 embeddings"):
        read_vocabulary(facts, tmp_path, 4)


@pytest.mark.parametrize(
    ("stops", "eos", "keys"),
    [
        ([3], 3, {"eos": 3}),
        ([3, 0], 3, {"eos": 3, "eom": 0}),
        ([0, 1, 2], None, {"eos": 0, "eom": 1, "eot": 2}),
        ([0, 3], 0, {"eos": 0}),  # <|end|> is known by its text
        ([1], 3, {"eos": 1}),  # Transformers does not stop at the tokenizer's own
        ([], 3, {"eos": 5}),  # an id that no text has: llama.cpp would take 11, whatever it is
    ],
)
@pytest.mark.case(
    "tokenizer",
    "GGUF: a list of stops, a tokenizer without an end, or another one",
    None,
    "eos, eom and eot hold the list; never an ordinary token",
)
def test_keys_by_which_generation_ends(
    stops: list[int], eos: int | None, keys: dict[str, int], tmp_path: Path
) -> None:
    values = _values(_facts(tmp_path, _small_bpe(), special={"eos": eos}, stops=stops), 6)
    found = {role: values.get(f"ggml.{role}_token_id") for role in ("eos", "eot", "eom")}
    assert {role: token for role, token in found.items() if token is not None} == keys


def test_a_model_that_never_stops_is_refused_where_no_id_is_free(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="nothing ends generation"):
        _values(_facts(tmp_path, _small_bpe()), 5)


def test_what_is_added_is_what_transformers_adds(tmp_path: Path) -> None:
    facts = _facts(tmp_path, _small_bpe(), special={"bos": 0}, start=[1], end=[3], stops=[3])
    values = _values(facts, 6)
    assert values["ggml.bos_token_id"] == 1
    assert values["ggml.add_bos_token"] is True
    assert values["ggml.eos_token_id"] == 3
    assert values["ggml.add_eos_token"] is True


def test_named_templates_are_listed(tmp_path: Path) -> None:
    templates = {"a b": "1", "default": "2", "tool_use": "3"}
    values = _values(_facts(tmp_path, _small_bpe(), stops=[3], templates=templates), 6)
    found = {key: text for key, text in values.items() if key.startswith("chat")}
    assert found == {
        "chat_template": "2",
        "chat_template.a_b": "1",
        "chat_template.tool_use": "3",
        "chat_templates": [b"a_b", b"tool_use"],
    }
    facts = _facts(tmp_path, _small_bpe(), stops=[3], templates={"a b": "1", "a_b": "2"})
    with pytest.raises(WorkerError, match="one chat template 'a_b'"):
        read_vocabulary(facts, tmp_path, 6)


def _small_sentencepiece() -> dict[str, Any]:
    added = [
        {"id": number, "content": text, "special": True, "rstrip": text.startswith("<|u")}
        for number, text in enumerate(("<unk>", "<s>", "</s>", "<|endoftext|>", "<|user|>"))
    ]
    added[2]["rstrip"] = True
    vocab = {entry["content"]: entry["id"] for entry in added}
    vocab |= {"<0x41>": 5, "ab": 6, "abb": 7, "a": 8, "b": 9}
    model = {"type": "BPE", "byte_fallback": True, "vocab": vocab, "merges": ["a b", "ab b"]}
    return {"added_tokens": added, "model": model, "normalizer": {"type": "Prepend"}}


def test_sentencepiece_from_tokenizer_json_alone(tmp_path: Path) -> None:
    facts = _facts(tmp_path, _small_sentencepiece(), start=[1], stops=[2])
    values = _values(facts, 10)
    assert values["ggml.scores"] == [-1000.0] * 5 + [0.0, 0.0, -1.0, -2.0, -3.0]
    assert values["ggml.token_type"] == [3] * 5 + [6, 1, 1, 1, 1]
    assert values["ggml.add_bos_token"] is True
    assert values["ggml.bos_token_id"] == 1
    assert "ggml.add_space_prefix" not in values
    assert read_vocabulary(facts, tmp_path, 10).strips_after_special


@pytest.mark.parametrize(
    ("scheme", "prefix"), [("always", None), ("first", False), ("never", False)]
)
@pytest.mark.case(
    "tokenizer",
    "GGUF: prepend_scheme first, never, always",
    None,
    "add_space_prefix follows it",
)
def test_where_sentencepiece_puts_a_space(scheme: str, prefix: bool | None, tmp_path: Path) -> None:
    metaspace = {"type": "Metaspace", "prepend_scheme": scheme}
    sequence = {"type": "Sequence", "pretokenizers": [metaspace]}
    for step in (metaspace, sequence):
        tokenizer = _small_sentencepiece() | {"normalizer": None, "pre_tokenizer": step}
        values = _values(_facts(tmp_path, tokenizer, stops=[2]), 10)
        assert values.get("ggml.add_space_prefix") is prefix
