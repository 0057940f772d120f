"""The three tokenizers of Phi at full vocabulary size, made on the spot: 32 k, 100 k and 200 k.

The published ones cannot be part of this repository. These have their form: the small trained
tokenizers of the tests, with as many made-up merges more as the published vocabularies have, and
the published names and ids of the added tokens, their gaps included. The same every time; a
second of work each.
"""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

from support.checkpoints import TOKENIZERS, Shape
from support.train_tokenizers import added_token, phi4_added, phi4mini_added

PIECES = {"phi3": 32_000, "phi4": 100_256, "phi4mini": 199_998}
EMBEDDINGS = {"phi3": 32_064, "phi4": 100_352, "phi4mini": 200_064}
_OFFSETS = {"phi4": 98_816, "phi4mini": 198_400}  # of the small tokenizers' ids
_LONGEST = 14  # signs of a made-up token
_SHORT = 4

# Phi-3.5-mini's; most of them take away the white space that follows
_PHI3 = ("<|endoftext|>", "<|assistant|>", "<|placeholder1|>", "<|placeholder2|>",
         "<|placeholder3|>", "<|placeholder4|>", "<|system|>", "<|end|>", "<|placeholder5|>",
         "<|placeholder6|>", "<|user|>")  # fmt: skip


def make_full_tokenizer(folder: Path, shape: Shape) -> Path:
    """Write the files of a full tokenizer into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    small = TOKENIZERS[shape]
    document = json.loads((small / "tokenizer.json").read_text(encoding="utf-8"))
    settings = json.loads((small / "tokenizer_config.json").read_text(encoding="utf-8"))
    shutil.copyfile(small / "chat_template.jinja", folder / "chat_template.jinja")
    model = document["model"]
    if shape == "phi3":
        added = _phi3_added()
    else:
        both = phi4_added() if shape == "phi4" else phi4mini_added()
        added = {number + _OFFSETS[shape]: token for number, token in both.items()}
    names = {token["content"] for token in (*added.values(), *document["added_tokens"])}
    vocabulary = {text: number for text, number in model["vocab"].items() if text not in names}
    if shape == "phi3":
        vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, **vocabulary}
    spaced = bool(model["merges"]) and isinstance(model["merges"][0], str)
    pairs = _made_up_merges(vocabulary, PIECES[shape])
    model["merges"] += [" ".join(pair) if spaced else list(pair) for pair in pairs]
    if shape == "phi3":
        _extend_model(small / "tokenizer.model", folder / "tokenizer.model", pairs)
    model["vocab"] = vocabulary | {str(token["content"]): number for number, token in added.items()}
    document["added_tokens"] = [{"id": number, **token} for number, token in sorted(added.items())]
    settings["added_tokens_decoder"] = {str(number): token for number, token in added.items()}
    for name, content in (("tokenizer.json", document), ("tokenizer_config.json", settings)):
        text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def full_stops(shape: Shape) -> list[int]:
    """Return the published generation_config.json's eos_token_id."""
    return {"phi3": [32007, 32001, 32000], "phi4": [100257, 100265],
            "phi4mini": [200020, 199999]}[shape]  # fmt: skip


def _phi3_added() -> dict[int, dict[str, Any]]:
    tokens: dict[int, dict[str, Any]] = {
        0: added_token("<unk>"),
        1: added_token("<s>"),
        2: added_token("</s>", rstrip=True, special=False),
    }
    for number, text in enumerate(_PHI3, start=32_000):
        tokens[number] = added_token(text, rstrip=text != "<|endoftext|>")
    return tokens


def _made_up_merges(vocabulary: dict[str, int], size: int) -> list[tuple[str, str]]:
    """Fill a vocabulary up to `size` with tokens made of two that it has; return the pairs."""
    short = [text for text in vocabulary if len(text) <= _SHORT and not text.startswith("<")]
    texts = [text for text in vocabulary if not text.startswith("<")]
    pairs: list[tuple[str, str]] = []
    state = 1
    while len(vocabulary) < size:
        state = state * 6364136223846793005 + 1442695040888963407 & (1 << 64) - 1
        left, right = texts[(state >> 33) % len(texts)], short[(state >> 11) % len(short)]
        made = left + right
        if len(made) <= _LONGEST and made not in vocabulary and right[0] not in "\u0120\u2581":
            vocabulary[made] = len(vocabulary)
            pairs.append((left, right))
            texts.append(made)
    return pairs


def _extend_model(small: Path, path: Path, pairs: list[tuple[str, str]]) -> None:
    """Write a sentencepiece model with the pieces of the pairs more: a message is extended by
    appending to it. The score is minus the rank, as sentencepiece's own trainer has it."""
    first = 2048
    entries = bytearray(small.read_bytes())
    for rank, (left, right) in enumerate(pairs):
        text = (left + right).encode()
        score = struct.pack("<f", -float(first - 259 + rank))
        piece = b"\x0a" + bytes([len(text)]) + text + b"\x15" + score
        entries += b"\x0a" + bytes([len(piece)]) + piece
    path.write_bytes(entries)
