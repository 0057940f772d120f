"""An ONNX artifact's tokenizer, as onnxruntime-genai runs it, compared with the checkpoint's. Needs
the package onnxruntime_genai."""

from __future__ import annotations

import json
from pathlib import Path

from phibuild.worker.companions import read_json
from phibuild.worker.json_values import JsonDict, as_ids
from phibuild.worker.tokenizer_check import (
    AROUND,
    Difference,
    Facts,
    TokenizerCheck,
    check_tokenizer,
)
from phibuild.worker.tokenizer_texts import prefixes_every_text, spelled_out

# onnxruntime-genai splits sentencepiece's text at spaces before it merges, which Transformers does
# not and Phi's vocabulary (runs of spaces are tokens) shows; it does so for every class but this.
_UNSPLIT_CLASS = "GemmaTokenizer"
_AROUND = (
    "onnxruntime-genai's tokenizer adds no token to a text: put BOS before it where one is due"
)
_LEFT = (
    "onnxruntime-genai's tokenizer leaves the white space before a special token, which this "
    "tokenizer takes away"
)
_PREFIX = (
    "onnxruntime-genai's tokenizer puts a space before every text between special tokens or before "
    "none; this tokenizer does so at the first text alone, or where none is there already"
)
# Of a tokenizer.json: what onnxruntime-genai takes for a tokenizer that puts no space anywhere. To
# the tokenizers library the second does nothing, as no space is left after the first.
_NO_PREFIX = {
    "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
    "pre_tokenizer": {
        "type": "Split",
        "pattern": {"String": " "},
        "behavior": "MergedWithPrevious",
        "invert": False,
    },
}


def adapt(folder: Path, facts: Facts) -> None:
    """Give an artifact's configuration what onnxruntime-genai needs to make the right ids and to
    end generation at the right ones."""
    tokenizer = json.loads(facts.tokenizer.read_text(encoding="utf-8"))
    if tokenizer["model"].get("byte_fallback"):
        if not prefixes_every_text(tokenizer):
            path = folder / "tokenizer.json"
            _write(path, json.loads(path.read_text(encoding="utf-8")) | _NO_PREFIX)
        path = folder / "tokenizer_config.json"
        settings = read_json(path, optional=True)
        settings["tokenizer_class"] = _UNSPLIT_CLASS
        _write(path, settings)
    path = folder / "genai_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if facts.stops and as_ids(config["model"].get("eos_token_id")) != facts.stops:
        stops = facts.stops
        config["model"]["eos_token_id"] = stops if len(stops) > 1 else stops[0]
        _write(path, config)


def check(folder: Path, facts: Facts) -> TokenizerCheck:
    """Compare an artifact's tokenizer with what Transformers makes of the probes.

    Raises WorkerError if it differs where onnxruntime-genai could do as Transformers does.
    """
    own = GenaiTokenizer(folder)
    tokenizer = json.loads(facts.tokenizer.read_text(encoding="utf-8"))

    def explain(difference: Difference) -> str | None:
        due = difference.expected
        if difference.kind == AROUND:
            due = due[len(facts.start) : len(due) - len(facts.end)]
            if difference.found == due:
                return _AROUND
        for left, prefixed, why in (
            (True, False, _LEFT),
            (False, True, _PREFIX),
            (True, True, _PREFIX),
        ):
            text = spelled_out(
                difference.text, tokenizer, left=left, right=False, prefixed=prefixed
            )
            if text is None or own.encode(text, around=False) == due:
                return why
        return None

    return check_tokenizer(facts, own, explain)


class GenaiTokenizer:
    """The tokenizer of an artifact's folder, without its model."""

    def __init__(self, folder: Path) -> None:
        import onnxruntime_genai

        self._tokenizer = onnxruntime_genai.Tokenizer(str(folder))

    def encode(self, text: str, *, around: bool) -> list[int]:
        """Return the ids of a text. Nothing is ever added to it."""
        return [int(token) for token in self._tokenizer.encode(text)]

    def stops(self) -> list[int]:
        """Return the ids that end generation."""
        return [int(token) for token in self._tokenizer.eos_token_ids]


def _write(path: Path, document: JsonDict) -> None:
    text = json.dumps(document, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
