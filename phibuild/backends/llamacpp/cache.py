"""The type of the KV cache that a GGUF file is made for. Standard library only.

llama.cpp takes it from its command line (`--cache-type-k`, `--cache-type-v`) and has no key for it,
so phibuild's runtime reads it from one of phibuild's own, which llama.cpp passes over.
"""

from __future__ import annotations

from typing import Literal

from phibuild.backends.llamacpp.layout import BLOCK_TYPES

CacheType = Literal["f16", "q8_0", "q4_0"]

DEFAULT: CacheType = "f16"
"""What llama.cpp takes when it is not told otherwise."""
BITS: dict[CacheType, int] = {"q8_0": 8, "q4_0": 4}
"""The quantized types, by llama.cpp's names for them, and the bits of an element."""
KEY = "phibuild.kv_cache_type"


def bytes_per_element(cache: CacheType) -> float:
    """Return the bytes of an element, a block's scale included."""
    block = BLOCK_TYPES[cache.upper()]
    return block.nbytes / block.weights


def odd_head(cache: CacheType, head_dim: int) -> str | None:
    """Return why heads so wide cannot be cached in a type, None if they can: llama.cpp packs each
    head's part of a row by itself."""
    weights = BLOCK_TYPES[cache.upper()].weights
    if head_dim % weights == 0:
        return None
    return (
        f"llama.cpp caches {cache} in blocks of {weights} elements, this model has heads of "
        f"{head_dim}"
    )
