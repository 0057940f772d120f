"""Texts around added tokens, as Transformers takes them apart. Standard library only.

A runtime that does not take away white space where a tokenizer does makes the same ids of a text
from which it is taken away already: so a difference is told from a mistake.
"""

from __future__ import annotations

import re

from phibuild.worker.json_values import JsonObject

_SPACES = " \u2581"  # the second is sentencepiece's sign of a space


def prefixes_every_text(tokenizer: JsonObject) -> bool:
    """Return whether sentencepiece puts a space before each text between special tokens, as
    llama.cpp does unless it is told to put none at all: "first" is the first text alone."""
    steps = _steps(tokenizer.get("normalizer"), "normalizers")
    return prefixes_where_no_space_is(tokenizer) or any(
        step.get("type") == "Prepend" for step in steps
    )


def prefixes_where_no_space_is(tokenizer: JsonObject) -> bool:
    """Return whether sentencepiece puts a space before each text that does not begin with one."""
    return any(
        step.get("type") == "Metaspace" and step.get("prepend_scheme") == "always"
        for step in _steps(tokenizer.get("pre_tokenizer"), "pretokenizers")
    )


def _steps(step: JsonObject | None, inner: str) -> list[JsonObject]:
    if not step:
        return []
    return list(step[inner]) if step.get("type") == "Sequence" else [step]


def spelled_out(
    text: str, tokenizer: JsonObject, *, left: bool, right: bool, prefixed: bool
) -> str | None:
    """Return a text from which a runtime that never takes white space away (on the sides `left`
    and `right` of special tokens) has nothing to take away, and to which one that puts a space
    before every text or before none has nothing to add (`prefixed`) that Transformers does not: if
    it makes the right ids of that, this is all the difference. None if there is no such text: such
    a runtime makes two spaces of a lone one, and none of an empty text."""
    found = _parts(text, tokenizer, left=left, right=right)
    if prefixed and not prefixes_every_text(tokenizer):
        if found[0] and found[0][0] not in _SPACES:
            found[0] = f" {found[0]}"
    elif prefixed and prefixes_where_no_space_is(tokenizer):
        if any(part in _SPACES for part in found[::2] if part):
            return None
        found[::2] = [part[part[:1] in tuple(_SPACES) :] for part in found[::2]]
    return "".join(found)


def _parts(text: str, tokenizer: JsonObject, *, left: bool, right: bool) -> list[str]:
    """Return a text as texts and added tokens by turns, beginning and ending with a text, which
    may be empty. `left` and `right`: without the white space on that side of a token that the
    tokenizer (the content of a tokenizer.json) takes away there."""
    added = {entry["content"]: entry for entry in tokenizer.get("added_tokens") or ()}
    if not added:
        return [text]
    names = sorted(added, key=len, reverse=True)
    found = re.split("(" + "|".join(map(re.escape, names)) + ")", text)
    for number in range(1, len(found), 2):
        entry = added[found[number]]
        if left and entry.get("lstrip"):
            found[number - 1] = found[number - 1].rstrip()
        if right and entry.get("rstrip"):
            found[number + 1] = found[number + 1].lstrip()
    return found
