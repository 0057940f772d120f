"""What a context has to be made for, by the keys of a GGUF file."""

from __future__ import annotations

from pathlib import Path

from phibuild.backends.llamacpp import cache, ggml
from phibuild.worker.protocol import WorkerError


def original_context(path: Path) -> int:
    """Return how many tokens the short rope factors are for. Raises WorkerError for another
    architecture than phi3, for which phibuild makes its contexts."""
    name = ggml.read_texts(path, "general.architecture").get("general.architecture")
    if name != "phi3":
        raise WorkerError(f"{path.name} holds a model of architecture {name!r}, not 'phi3'")
    for key in ("phi3.rope.scaling.original_context_length", "phi3.context_length"):
        number = ggml.find_number(path, key)
        if number is not None:
            return number
    raise WorkerError(f"{path.name} does not say how long its context is")


def cache_type(path: Path) -> str | None:
    """Return the quantized type of the KV cache that a file is made for, None if it is for no such
    cache. Raises WorkerError for a type that is not known here."""
    kind = ggml.read_texts(path, cache.KEY).get(cache.KEY)
    if kind is not None and kind not in cache.BITS:
        raise WorkerError(f"{path.name} is made for a KV cache of type {kind!r}, not known here")
    return kind
