"""The tokenizer of a Phi checkpoint as GGUF key/values. Runs in the toolchain.

Two kinds: sentencepiece (Phi-3.x, GGUF model `llama`) and byte-level BPE (Phi-4, Phi-4-mini, GGUF
model `gpt2`). What the tokenizer is comes from Transformers, by the facts of the source; token
types, scores and padding follow llama.cpp's converter (conversion/phi.py, conversion/base.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_letters, digits

from phibuild.backends.llamacpp.header import Value
from phibuild.backends.llamacpp.pretokenizer import pretokenizer_name
from phibuild.backends.llamacpp.special_tokens import special_token_values
from phibuild.worker.companions import read_json
from phibuild.worker.json_values import JsonObject
from phibuild.worker.protocol import WorkerError
from phibuild.worker.sentencepiece_model import Piece, read_pieces
from phibuild.worker.tokenizer_check import Facts
from phibuild.worker.tokenizer_texts import prefixes_every_text

# llama_token_type in llama.h
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_PADDING_SCORE = -10000.0
_ADDED_SCORE = -1000.0
# Tokens after which white space counts even where llama.cpp strips it after special tokens.
_NEVER_STRIPPED = ("<unk>", "<s>", "<|endoftext|>")


@dataclass(frozen=True)
class Vocabulary:
    """Key/values of the tokenizer; whether most of its special tokens eat the white space that
    follows them, in the one way that llama.cpp can do it; and the content of its tokenizer.json,
    which the finished file is compared with."""

    values: list[Value]
    strips_after_special: bool
    tokenizer: JsonObject
    facts: Facts


@dataclass
class _Tokens:
    """The arrays of the file, one entry per row of the embedding."""

    texts: list[bytes]
    scores: list[float]
    types: list[int]

    def set(self, token: int, text: str, score: float, kind: int) -> None:
        if not 0 <= token < len(self.texts):
            raise WorkerError(
                f"token {text!r} has id {token}, the model has {len(self.texts)} embeddings"
            )
        self.texts[token], self.scores[token], self.types[token] = text.encode(), score, kind


def read_vocabulary(facts: Facts, source: Path, vocab_size: int) -> Vocabulary:
    """Return the tokenizer of a model of `vocab_size` embeddings. `source` is the checkpoint's
    folder, for config.json and the scores in its tokenizer.model.

    Raises WorkerError if it is one that llama.cpp cannot run.
    """
    tokenizer = read_json(facts.tokenizer)
    added = tokenizer.get("added_tokens") or []
    tokens = _Tokens(
        [f"[PAD{number}]".encode() for number in range(vocab_size)],
        [_PADDING_SCORE] * vocab_size,
        [UNUSED] * vocab_size,
    )
    model = tokenizer.get("model") or {}
    sentencepiece = bool(model.get("byte_fallback"))
    if sentencepiece:
        contents = {entry["content"] for entry in added}
        pieces = _pieces(source / "tokenizer.model", model, contents)
        if pieces:
            _fill_sentencepiece(tokens, pieces)
        else:
            _fill_converted_sentencepiece(tokens, model, contents)
        _fill_added(tokens, added, sentencepiece=True)
        values = [
            Value("tokenizer.ggml.model", "str", "llama"),
            Value("tokenizer.ggml.pre", "str", "default"),
            Value("tokenizer.ggml.tokens", "array[str]", tokens.texts),
            Value("tokenizer.ggml.scores", "array[f32]", tokens.scores),
            Value("tokenizer.ggml.token_type", "array[i32]", tokens.types),
        ]
    elif model.get("type") == "BPE" and model.get("merges"):
        for text, token in model["vocab"].items():
            tokens.set(token, text, 0.0, NORMAL)
        _fill_added(tokens, added, sentencepiece=False)
        values = [
            Value("tokenizer.ggml.model", "str", "gpt2"),
            Value("tokenizer.ggml.pre", "str", pretokenizer_name(tokenizer)),
            Value("tokenizer.ggml.tokens", "array[str]", tokens.texts),
            Value("tokenizer.ggml.token_type", "array[i32]", tokens.types),
            Value(
                "tokenizer.ggml.merges", "array[str]", [_merge(pair) for pair in model["merges"]]
            ),
        ]
    else:
        raise WorkerError(
            "tokenizer.json holds neither a sentencepiece nor a byte-level BPE vocabulary: "
            f"type {model.get('type')!r}"
        )
    unused = next((token for token, kind in enumerate(tokens.types) if kind == UNUSED), None)
    config = read_json(source / "config.json")
    values += special_token_values(facts, tokens.texts, unused, config)
    if sentencepiece and not prefixes_every_text(tokenizer):
        values.append(Value("tokenizer.ggml.add_space_prefix", "bool", False))
    values += _chat_template_values(facts.templates)
    strips = sentencepiece and _strips_after_special(tokens, added)
    return Vocabulary(values, strips, tokenizer, facts)


def _pieces(path: Path, model: JsonObject, added: set[str]) -> Sequence[Piece]:
    """Return the pieces of a tokenizer.model; none if it is not there or another tokenizer's: the
    vocabulary that runs is tokenizer.json's."""
    if not path.is_file():
        return ()
    try:
        pieces = read_pieces(path)
    except ValueError as error:
        raise WorkerError(f"{path.name} cannot be read: {error}") from error
    own = {text: token for text, token in model["vocab"].items() if text not in added}
    found = {piece.text: token for token, piece in enumerate(pieces) if piece.text not in added}
    return pieces if found == own else ()


def _fill_sentencepiece(tokens: _Tokens, pieces: Sequence[Piece]) -> None:
    """Fill in pieces; the types of sentencepiece_model.proto are those of llama.h."""
    for token, piece in enumerate(pieces):
        kind = NORMAL if piece.type == USER_DEFINED else piece.type
        tokens.set(token, piece.text, piece.score, kind)


def _fill_converted_sentencepiece(tokens: _Tokens, model: JsonObject, added: set[str]) -> None:
    """Take the pieces from tokenizer.json where tokenizer.model is missing: Transformers 5 does
    not save it. A BPE piece's score is minus its rank: first those that merges make, in the order
    of the merges, then the single characters."""
    vocabulary: Mapping[str, int] = model["vocab"]
    ranks: dict[str, int] = {}
    for pair in model.get("merges") or ():
        left, right = _halves(pair)
        ranks.setdefault(left + right, len(ranks))
    for text, token in sorted(vocabulary.items(), key=lambda entry: entry[1]):
        if text in added:
            continue  # these are no pieces
        if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            tokens.set(token, text, 0.0, BYTE)
        else:
            tokens.set(token, text, -float(ranks.setdefault(text, len(ranks))), NORMAL)


def _fill_added(tokens: _Tokens, added: list[JsonObject], *, sentencepiece: bool) -> None:
    for entry in added:
        text = entry["content"]
        control = entry.get("special") or (not sentencepiece and _looks_special(text))
        if not control and not sentencepiece:
            text = text.replace("▁", " ")
        tokens.set(entry["id"], text, _ADDED_SCORE, CONTROL if control else USER_DEFINED)


def _looks_special(text: str) -> bool:
    """Whether an added token is one of control though the checkpoint does not say so, such as
    Phi-4-mini's <|tool_call|>."""
    return text.startswith("<|") and text.endswith("|>")


def _strips_after_special(tokens: _Tokens, added: list[JsonObject]) -> bool:
    known = set(tokens.texts)
    if any(text.encode() not in known for text in (*_NEVER_STRIPPED, "</s>")):
        return False  # llama.cpp cannot load a file of such a name without these
    flags = [
        bool(entry.get("rstrip")) for entry in added if entry["content"] not in _NEVER_STRIPPED
    ]
    return 2 * sum(flags) > len(flags)


def _halves(pair: str | list[str]) -> list[str]:
    """Return what a merge puts together, which tokenizer.json has as "left right" or as a list."""
    return pair.split(" ") if isinstance(pair, str) else pair


def _merge(pair: str | list[str]) -> str:
    """Return a merge as "left right"; a space inside a part is written as its byte-level sign."""
    return " ".join(part.replace(" ", "Ġ") for part in _halves(pair))


def _chat_template_values(templates: Mapping[str, str]) -> list[Value]:
    """Return chat templates as gguf-py's `add_chat_template` writes them: names have letters and
    digits alone, and those of all but the default are listed. Raises WorkerError if two names
    become one."""
    values, names = [], []
    for name, text in sorted(templates.items(), key=lambda entry: entry[0] != "default"):
        key = "".join(sign if sign in ascii_letters + digits else "_" for sign in name)
        if key in names:
            raise WorkerError(f"GGUF has one chat template {key!r} at most, {name!r} is a second")
        if name != "default":
            names.append(key)
        suffix = "" if name == "default" else f".{key}"
        values.append(Value(f"tokenizer.chat_template{suffix}", "str", text))
    if names:
        values.append(
            Value("tokenizer.chat_templates", "array[str]", [name.encode() for name in names])
        )
    return values
