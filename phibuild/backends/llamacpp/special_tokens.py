"""Ids of the special tokens, and which of them a tokenizer adds by itself, as GGUF key/values.

Follows `SpecialVocab` of llama.cpp's gguf-py: a token named in tokenizer_config.json counts, then
the id in config.json. What the tokenizer adds is read from the post-processor in tokenizer.json,
which is what runs, and from tokenizer_config.json where that says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from phibuild.backends.llamacpp.header import Value

# role in the checkpoint -> role in the key
_ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "sep": "seperator", "pad": "padding",
          "cls": "cls", "mask": "mask"}  # fmt: skip


def special_token_values(
    tokenizer: Mapping[str, Any],
    settings: Mapping[str, Any],
    config: Mapping[str, Any],
    vocab_size: int,
) -> list[Value]:
    """Return the key/values, from the contents of tokenizer.json, tokenizer_config.json and
    config.json. Ids outside the vocabulary are left out."""
    added = {entry["content"]: entry["id"] for entry in reversed(tokenizer.get("added_tokens", []))}
    values = []
    for role, key in _ROLES.items():
        token = added.get(_content(settings.get(f"{role}_token")))
        if token is None:
            token = config.get(f"{role}_token_id")
        if isinstance(token, int) and 0 <= token < vocab_size:
            values.append(Value(f"tokenizer.ggml.{key}_token_id", "u32", token))
    adds = _added_by_post_processor(tokenizer, settings)
    for role in ("bos", "eos"):
        add = adds.get(role, settings.get(f"add_{role}_token"))
        if isinstance(add, bool):
            values.append(Value(f"tokenizer.ggml.add_{role}_token", "bool", add))
    return values


def _added_by_post_processor(
    tokenizer: Mapping[str, Any], settings: Mapping[str, Any]
) -> dict[str, bool]:
    adds: dict[str, bool] = {}
    outer = tokenizer.get("post_processor") or {}
    for processor in outer.get("processors", [outer]):
        if processor.get("type") == "ByteLevel":
            adds.setdefault("bos", False)
            adds.setdefault("eos", False)
        elif processor.get("type") == "TemplateProcessing" and len(processor["single"]) > 1:
            for role, step in (("bos", processor["single"][0]), ("eos", processor["single"][-1])):
                if "SpecialToken" in step:
                    named = _content(settings.get(f"{role}_token"))
                    adds[role] = step["SpecialToken"]["id"] == named
    return adds


def _content(token: object) -> str | None:
    """Return the text of a token that tokenizer_config.json names as text or as an object."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) else None
