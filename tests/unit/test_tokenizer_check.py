"""Comparing a tokenizer with the right one, and telling a difference from a mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from phibuild.planning.readme import tokenizer_notes
from phibuild.store.documents import TokenizerComparison
from phibuild.worker.companions import companions, complete_generation_config, copy_companions
from phibuild.worker.protocol import WorkerError
from phibuild.worker.tokenizer_check import (
    Difference,
    Facts,
    check_tokenizer,
    nothing_to_explain,
    read_facts,
)
from phibuild.worker.tokenizer_probes import probes
from phibuild.worker.tokenizer_texts import spelled_out


class Letters:
    """A tokenizer whose ids are code points, with id 1 before each text."""

    def __init__(self, start: int = 1, stops: tuple[int, ...] = (2,), upper: bool = False) -> None:
        self.start, self._stops, self.upper = start, list(stops), upper

    def encode(self, text: str, *, around: bool) -> list[int]:
        ids = list(map(ord, text.upper() if self.upper else text))
        return [self.start, *ids] if around else ids

    def stops(self) -> list[int]:
        return self._stops


@pytest.fixture
def facts(tmp_path: Path) -> Facts:
    tried = probes(["<|x|>"], "chat")
    document = {
        "probes": [
            {"kind": probe.kind, "text": probe.text, "ids": list(map(ord, probe.text))}
            for probe in tried
        ],
        "start": [1], "end": [], "stops": [2], "special": {}, "chat": "chat", "templates": {},
    }  # fmt: skip
    (tmp_path / "probes.json").write_text(json.dumps(document), encoding="utf-8")
    return read_facts(tmp_path)


def test_equal_tokenizers(facts: Facts) -> None:
    found = check_tokenizer(facts, Letters(), nothing_to_explain)
    assert found == {"probes": len(facts.probes), "differences": []}
    kinds = {probe.kind for probe in facts.probes}
    assert {"empty", "special", "special_spaced", "script", "emoji", "code", "chat"} <= kinds


@pytest.mark.parametrize(
    ("own", "said"),
    [
        (Letters(upper=True), r"becomes \[76, 69.*not \[108, 101.* more of \d+ probes differ"),
        (Letters(start=7), r"\(around\) becomes \[7, "),
        (Letters(stops=(2, 3)), r"generation ends at ids \[2, 3\], not \[2\]"),
    ],
)
def test_a_difference_fails(own: Letters, said: str, facts: Facts) -> None:
    with pytest.raises(WorkerError, match=said):
        check_tokenizer(facts, own, nothing_to_explain)


def test_what_a_runtime_cannot_do_is_listed_and_nothing_else(facts: Facts) -> None:
    def explain(difference: Difference) -> str | None:
        return "it cannot stop" if difference.kind == "stops" else None

    found = check_tokenizer(facts, Letters(stops=()), explain)
    assert found["differences"] == [
        {"kind": "stops", "text": "", "expected": [2], "found": [], "why": "it cannot stop"}
    ]
    with pytest.raises(WorkerError, match="around"):
        check_tokenizer(facts, Letters(start=7, stops=()), explain)


def test_texts_from_which_nothing_is_left_to_take() -> None:
    added = [
        {"content": "<|a|>", "lstrip": True, "rstrip": False},
        {"content": "<|a|>b", "lstrip": False, "rstrip": True},
    ]
    tokenizer = {"added_tokens": added, "normalizer": {"type": "Prepend"}}
    text = "x  <|a|>  y <|a|>b \n z"
    for left, right, expected in (
        (True, True, "x<|a|>  y <|a|>bz"),
        (True, False, "x<|a|>  y <|a|>b \n z"),
        (False, True, "x  <|a|>  y <|a|>bz"),
    ):
        assert spelled_out(text, tokenizer, left=left, right=right, prefixed=False) == expected
    first = {"added_tokens": added}
    assert spelled_out("x<|a|>y", first, left=False, right=False, prefixed=True) == " x<|a|>y"
    assert spelled_out(" x", first, left=False, right=False, prefixed=True) == " x"
    always = {"pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "always"}}
    assert spelled_out(" x", always, left=False, right=False, prefixed=True) == "x"
    assert spelled_out(" ", always, left=False, right=False, prefixed=True) is None


def test_named_templates_are_copied(tmp_path: Path) -> None:
    source, output = tmp_path / "source", tmp_path / "output"
    (source / "additional_chat_templates").mkdir(parents=True)
    output.mkdir()
    for name in ("tokenizer.json", "additional_chat_templates/rag.jinja", "notes.txt"):
        (source / name).write_text(name, encoding="utf-8")
    copied = copy_companions(source, output)
    assert copied == ["tokenizer.json", "additional_chat_templates/rag.jinja"]
    assert (output / copied[1]).read_text(encoding="utf-8") == copied[1]
    assert companions(["notes.txt", *copied, "additional_chat_templates/a/b.txt"]) == copied


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, {"eos_token_id": [3, 4]}),
        ({"top_k": 5}, {"top_k": 5, "eos_token_id": [3, 4]}),
        ({"eos_token_id": 9}, {"eos_token_id": 9}),
    ],
)
def test_generation_config_names_the_ends(
    before: dict[str, int] | None, after: dict[str, object], tmp_path: Path
) -> None:
    path = tmp_path / "generation_config.json"
    if before is not None:
        path.write_text(json.dumps(before), encoding="utf-8")
    complete_generation_config(tmp_path, [3, 4])
    assert json.loads(path.read_text(encoding="utf-8")) == after


def test_what_is_said_of_differences() -> None:
    spaces = [
        {"kind": "chat", "text": text, "expected": [1], "found": [2], "why": "it cannot"}
        for text in ("one ", "two ")
    ]
    ends = {"kind": "stops", "text": "", "expected": [1, 9], "found": [2, 9, 3], "why": "it ends"}
    compared = {"probes": 77, "differences": [spaces[0], ends, spaces[1]]}
    assert tokenizer_notes(TokenizerComparison.read(compared)) == [
        "it ends (at 2, 3 too; at 1 not)",
        "it cannot (2 of 77 probes, as 'one ')",
    ]
    assert tokenizer_notes(TokenizerComparison(probes=77, differences=[])) == []
