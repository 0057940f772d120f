"""Name the pre-tokenizer of a byte-level BPE for llama.cpp, which has each one built in.

llama.cpp's converter recognizes a pre-tokenizer by a hash over the ids of a test text, so that any
change of the vocabulary makes it fail. The regular expression in tokenizer.json says it directly.
"""

from __future__ import annotations

from collections.abc import Iterator

from phibuild.worker.json_values import JsonObject
from phibuild.worker.protocol import WorkerError

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_CL100K = (
    r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_PREFIX = r"[^\r\n\p{L}\p{N}]?"

# tiktoken's patterns as published Phi checkpoints spell them -> `tokenizer.ggml.pre`
_BY_REGEX = {
    # cl100k_base (Phi-4). "dbrx", not "llama-bpe": the same split, but merges always count.
    f"{_CONTRACTIONS}|{_CL100K}": "dbrx",
    # o200k_base (Phi-4-mini)
    f"{_PREFIX}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_PREFIX}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+": "gpt-4o",
}
_IGNORES_MERGES = {"dbrx": "llama-bpe"}
_GPT2 = "gpt-2"  # the split that ByteLevel itself makes


def pretokenizer_name(tokenizer: JsonObject) -> str:
    """Return `tokenizer.ggml.pre` for the content of a tokenizer.json.

    Raises WorkerError if llama.cpp has no such pre-tokenizer: the file would load, and then split
    text another way than the model was trained on.
    """
    steps = list(_steps(tokenizer.get("pre_tokenizer") or {}))
    splits = [step for step in steps if step.get("type") != "ByteLevel"]
    byte_levels = [step for step in steps if step.get("type") == "ByteLevel"]
    if len(splits) > 1 or len(byte_levels) != 1 or tokenizer.get("normalizer"):
        kinds = [step.get("type") for step in steps]
        raise WorkerError(f"llama.cpp has no pre-tokenizer that does what this one does: {kinds}")
    own_split = byte_levels[0].get("use_regex", True)
    if not splits and own_split:
        name = _GPT2
    elif splits and not own_split:
        pattern = (splits[0].get("pattern") or {}).get("Regex")
        if pattern not in _BY_REGEX:
            raise WorkerError(
                "the pre-tokenizer's regular expression in tokenizer.json is none that phibuild "
                f"knows the llama.cpp name of: {pattern!r}"
            )
        name = _BY_REGEX[pattern]
    else:
        raise WorkerError("tokenizer.json has no pre-tokenizer that llama.cpp has: two splits")
    if (tokenizer.get("model") or {}).get("ignore_merges"):
        if name not in _IGNORES_MERGES:
            raise WorkerError(
                f"tokenizer.json sets ignore_merges, llama.cpp's pre-tokenizer {name!r} does not"
            )
        name = _IGNORES_MERGES[name]
    return name


def _steps(step: JsonObject) -> Iterator[JsonObject]:
    """Yield the steps of a pre-tokenizer, sequences unfolded."""
    if step.get("type") == "Sequence":
        for inner in step.get("pretokenizers") or ():
            yield from _steps(inner)
    elif step:
        yield step
