"""Bytes of an artifact besides its weights. Standard library only; the core uses it."""

from __future__ import annotations

from phibuild.backends.base import SourceFiles

LAYER_XML_BYTES = 70_000
"""Of a layer's nodes in the .xml: names and ports (60 to 90 kB)."""


def tokenizer_bytes(source: SourceFiles) -> int:
    """Return the bytes of openvino_tokenizer and openvino_detokenizer, .bin.

    Both hold the vocabulary (8 bytes of offsets a token, and its text), the tokenizer the two
    halves of each merge too.
    """
    # Byte-level BPE writes bytes above 127 and blanks as two; the models hold the bytes.
    text = 1.0 if source.tokenizer == "sentencepiece" else 0.87
    vocabulary = 8 * source.tokens + text * source.token_bytes
    merges = 16 * source.merges + text * (source.merge_bytes - source.merges)
    return round(2 * vocabulary + merges)
