"""Ids of the special tokens, and which of them are added to a text, as GGUF key/values.

Follows `SpecialVocab` of llama.cpp's gguf-py where that has a choice: a token that the tokenizer
names counts, then the id in config.json. What is added, and what ends generation, is as
Transformers has it.
"""

from __future__ import annotations

from collections.abc import Sequence

from phibuild.backends.llamacpp.header import Value
from phibuild.worker.json_values import JsonObject
from phibuild.worker.protocol import WorkerError
from phibuild.worker.tokenizer_check import Facts

# role in the checkpoint -> role in the key
_ROLES = {
    "bos": "bos",
    "eos": "eos",
    "unk": "unknown",
    "sep": "seperator",
    "pad": "padding",
    "cls": "cls",
    "mask": "mask",
}
ENDING = frozenset(
    (
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<|flush|>",
        "<|calls|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "</s>",
        "<|eom_id|>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "[EOS]",
        "<|end_of_text|>",
        "<end_of_utterance>",
        "<eos>",
        "<turn|>",
        "<|tool_response>",
        "<\uff5cend\u2581of\u2581sentence\uff5c>",
        "[e~[",
        # padding and separators of code completion
        "<|fim_pad|>",
        "<fim-pad>",
        "<fim_pad>",
        "<PAD>",
        "[PAD]",
        "<|fim_repo|>",
        "<|repo_name|>",
        "<fim-repo>",
        "<REPO>",
        "<reponame>",
        "<|file_sep|>",
    )
)
"""Tokens of these texts end generation in llama.cpp whatever the file says (llama-vocab.cpp)."""


def special_token_values(
    facts: Facts, texts: Sequence[bytes], unused: int | None, config: JsonObject
) -> list[Value]:
    """Return the key/values. `texts` are the vocabulary's, `unused` is an id that no text has,
    `config` is the content of config.json. Ids outside the vocabulary are left out.

    Raises WorkerError if nothing ends generation and llama.cpp would take an ordinary token.
    """
    ids: dict[str, int] = {}
    for role, key in _ROLES.items():
        token = facts.special.get(role)
        if token is None:
            token = config.get(f"{role}_token_id")
        if isinstance(token, int) and 0 <= token < len(texts):
            ids[key] = token
    ids |= _around(facts)
    ids |= _ends(facts, ids.get("eos"), texts, unused)
    order = [*_ROLES.values(), "eot", "eom"]
    values = [
        Value(f"tokenizer.ggml.{key}_token_id", "u32", ids[key])
        for key in sorted(ids, key=order.index)
    ]
    values += [
        Value("tokenizer.ggml.add_bos_token", "bool", bool(facts.start)),
        Value("tokenizer.ggml.add_eos_token", "bool", bool(facts.end)),
    ]
    return values


def _around(facts: Facts) -> dict[str, int]:
    """Return the ids that llama.cpp is to put around a text: one before it, one after it."""
    found = {}
    if facts.start:
        found["bos"] = facts.start[-1]
    if facts.end:
        found["eos"] = facts.end[0]
    return found


def _ends(
    facts: Facts, eos: int | None, texts: Sequence[bytes], unused: int | None
) -> dict[str, int]:
    """Return keys with which every stop ends generation, and as few others as can be.

    llama.cpp has eos, eot and eom besides the tokens that it knows by their texts; without the key
    it takes id 2 or 11 as eos, whatever text that is.
    """
    stops = [stop for stop in facts.stops if 0 <= stop < len(texts)]
    if not facts.end and eos not in stops:
        eos = stops[0] if stops else unused
        if eos is None:
            raise WorkerError(
                "nothing ends generation: neither generation_config.json, config.json nor the "
                "tokenizer has an eos_token_id, and llama.cpp would take an ordinary token"
            )
    keys = {} if eos is None else {"eos": eos}
    left = [stop for stop in stops if stop != eos and texts[stop].decode() not in ENDING]
    # eom has no other use; without a key, eot is found by its text
    return keys | dict(zip(("eom", "eot"), left, strict=False))
