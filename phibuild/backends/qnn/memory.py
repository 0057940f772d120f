"""Upper bounds of the anonymous memory that the qnn runner takes. Standard library only."""

from __future__ import annotations

from collections.abc import Sequence

from phibuild.backends.qnn.layout import EMBEDDING, PROMPT_TOKENS, encoding, owners, parts, products
from phibuild.worker.architecture import Architecture
from phibuild.worker.requests import Options

_BUILD_BYTES = 512 << 20
_COMPILED, _SCORED = 13.5, 16
"""Bytes that compiling takes for each byte of a part's weights, in both of its graphs together, and
for each number of a layer's attention scores over part of a prompt."""
_JUDGE_BYTES = 768 << 20
_LOGITS_COPIES = 3
_PACKED = 2
"""The CPU's kernels keep weights as they pack them, for the graphs of a prompt and of a token."""


def build_memory(arch: Architecture, variants: Sequence[Options]) -> int:
    """Return a bound of building these together: weights are streamed, then parts are compiled one
    after the other."""
    return _BUILD_BYTES + max(_compiling(arch, options) for options in variants)


def _compiling(arch: Architecture, options: Options) -> int:
    if options["form"] != "context":
        return 0
    weights = _part_bytes(arch, options)
    scores: int = arch.heads * PROMPT_TOKENS * options["context"]
    return max(
        round(_COMPILED * weights[part.name]) + _SCORED * scores * len(part.layers)
        for part in parts(arch, options)
    )


def _part_bytes(arch: Architecture, options: Options) -> dict[str, int]:
    """Return the bytes of the weights of each part."""
    owner, shapes = owners(arch, options), dict(arch.tensors())
    found = dict.fromkeys(owner.values(), 0)
    for name, part in owner.items():
        how = products(options) if name == EMBEDDING else encoding(name, shapes[name], options)
        found[part] += how.nbytes(shapes[name])
    return found


def judge_memory(arch: Architecture, variants: Sequence[Options], window_tokens: int) -> int:
    """Return a bound of judging variants with these options, one after the other."""
    return max(_judge(arch, options, window_tokens) for options in variants)


def _judge(arch: Architecture, options: Options, window_tokens: int) -> int:
    context: int = options["context"]
    cache = 2 * 2 * arch.layers * arch.kv_heads * arch.head_dim * context
    scores = 4 * 4 * arch.heads * PROMPT_TOKENS * (context + PROMPT_TOKENS)
    logits = 4 * _LOGITS_COPIES * arch.vocab_size * window_tokens
    weights = sum(_part_bytes(arch, options).values())
    return _JUDGE_BYTES + cache + scores + logits + _PACKED * weights * 3 // 2
