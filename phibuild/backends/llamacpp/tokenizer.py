"""A GGUF file's tokenizer as llama.cpp runs it, compared with the checkpoint's."""

from __future__ import annotations

from pathlib import Path

from phibuild.backends.llamacpp.runtime import LlamaVocabulary
from phibuild.backends.llamacpp.special_tokens import ENDING
from phibuild.backends.llamacpp.vocabulary import Vocabulary
from phibuild.worker.tokenizer_check import (
    AROUND,
    STOPS,
    Difference,
    TokenizerCheck,
    check_tokenizer,
)
from phibuild.worker.tokenizer_probes import SPECIAL_SPACED
from phibuild.worker.tokenizer_texts import spelled_out

_WHITE_SPACE = (
    "llama.cpp takes away the white space after all special tokens or after none, and never that "
    "before one; this tokenizer does so at some"
)
_PREFIX = (
    "llama.cpp puts a space before every text between special tokens or before none; this "
    "tokenizer does so at the first text alone, or where none is there already"
)
_AROUND = "llama.cpp puts one token before a text and one after it at most"
_ENDING = "llama.cpp ends generation at every token that is spelled as an end, whatever a file says"
_STOPS = "llama.cpp has three keys for tokens that end generation; these are more"


def check(path: Path, vocabulary: Vocabulary) -> TokenizerCheck:
    """Compare the tokenizer in a GGUF file with what Transformers makes of the probes.

    Raises WorkerError if it differs where llama.cpp could do as Transformers does.
    """
    own = LlamaVocabulary(path)
    facts, tokenizer = vocabulary.facts, vocabulary.tokenizer
    texts = {token: own.text(token) for token in own.stops()}

    def explain(difference: Difference) -> str | None:
        if difference.kind == STOPS:
            more = set(difference.found) - set(difference.expected)
            if more and all(texts[token] in ENDING for token in more):
                return _ENDING
            return _STOPS if not more else None
        around = difference.kind == AROUND
        if around and max(len(facts.start), len(facts.end)) > 1:
            return _AROUND
        for stripped, prefixed, why in (
            (True, False, _WHITE_SPACE),
            (False, True, _PREFIX),
            (True, True, _PREFIX),
        ):
            text = spelled_out(
                difference.text, tokenizer, left=stripped, right=stripped, prefixed=prefixed
            )
            if text is None or own.encode(text, around=around) == difference.expected:
                return why
        strips = vocabulary.strips_after_special
        return _WHITE_SPACE if strips and difference.kind == SPECIAL_SPACED else None

    return check_tokenizer(facts, own, explain)
