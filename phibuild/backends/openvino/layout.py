"""Bytes of an artifact besides its weights. Standard library only; the core uses it.

The XML of an IR has no formula: each node costs a few hundred bytes of names and ports. Its size is
the sum of what the parts of the graph cost, measured on artifacts of phibuild's own (OpenVINO
2026.4) of 2 to 40 layers; more digits in shapes and ids change it by 1 %.
"""

from __future__ import annotations

from dataclasses import dataclass

from phibuild.backends.base import SourceFiles
from phibuild.worker.architecture import Architecture


@dataclass(frozen=True)
class _Cost:
    """XML bytes that a stored type adds to the fp32 graph: once, for the embedding and for a
    separate output layer each, and for each decoder layer."""

    once: int
    vocabulary: int
    layer: int


_COST = {
    "fp32": _Cost(0, 0, 0),
    "fp16": _Cost(391, 526, 3302),
    "int8_sym": _Cost(922, 1792, 7436),
    "int8_asym": _Cost(653, 3073, 12785),
    "int4_asym": _Cost(527, 3040, 16940),
    "int4_sym": _Cost(792, 3040, 11185),
    "int4_sym per row": _Cost(991, 3038, 7436),
}
_GRAPH, _LAYER = 50_660, 60_530
_LONGROPE = 7_320
_WINDOW = 2_900
_REPEATED_KEYS = 3_395
_REPEATED_KEYS_LAYER = 4_627
_PARTIAL_ROTARY_LAYER = 5_220
_TIED = -430

_SMALL_CONSTANTS = 305
"""Bytes of shapes, axes and scalars in the .bin; equal ones are stored once."""


def xml_bytes(arch: Architecture, mode: str, group_size: int | None) -> int:
    """Return the bytes of openvino_model.xml, about."""
    cost = _COST["int4_sym per row" if (mode, group_size) == ("int4_sym", -1) else mode]
    once = _GRAPH + cost.once + cost.vocabulary * (1 if arch.tied else 2)
    layer = _LAYER + cost.layer
    if arch.rope.is_longrope:
        once += _LONGROPE
    if arch.sliding_window is not None:
        once += _WINDOW
    if arch.kv_heads != arch.heads:
        once += _REPEATED_KEYS
        layer += _REPEATED_KEYS_LAYER
    if arch.rotary_dim != arch.head_dim:
        layer += _PARTIAL_ROTARY_LAYER
    if arch.tied:
        once += _TIED
    return once + layer * arch.layers


def constant_bytes(arch: Architecture) -> int:
    """Return the bytes of the .bin that are not weights: rope tables and small constants."""
    tables = 3 if arch.rope.is_longrope else 1
    return _SMALL_CONSTANTS + tables * 4 * (arch.rotary_dim // 2)


def tokenizer_bytes(source: SourceFiles) -> int:
    """Return the bytes of openvino_tokenizer and openvino_detokenizer, .xml and .bin.

    Both hold the vocabulary (8 bytes of offsets a token, and its text), the tokenizer the two
    halves of each merge too, and each .xml the chat template.
    """
    sentencepiece = source.tokenizer == "sentencepiece"
    # Byte-level BPE writes bytes above 127 and blanks as two; the models hold the bytes.
    text = 1.0 if sentencepiece else 0.87
    vocabulary = 8 * source.tokens + text * source.token_bytes
    merges = 16 * source.merges + text * (source.merge_bytes - source.merges)
    template = 1.08 * source.files.get("chat_template.jinja", 400)  # with its quotes escaped
    graphs = 38_530 if sentencepiece else 31_150
    return round(2 * vocabulary + merges + 2 * template + graphs)
