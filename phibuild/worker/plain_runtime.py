"""What a runtime that has no tokenizer, or no generator, of its own is made of: text by the
artifact's tokenizer.json, which needs the package tokenizers, and a continuation by its logits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

from phibuild.worker.architecture import Architecture
from phibuild.worker.companions import read_json
from phibuild.worker.generation import greedy
from phibuild.worker.interface import Logits, Tokens
from phibuild.worker.tokenizer_json import TokenizerJson

ARCHITECTURE = "architecture.json"
"""The file of an artifact with `Architecture.to_json`."""


class PlainRuntime(TokenizerJson, ABC):
    """A `phibuild.worker.interface.Native`, but for the model itself; `arch` is its shape."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.arch = Architecture.from_json(read_json(folder / ARCHITECTURE))
        self.reset()

    @abstractmethod
    def reset(self) -> None:
        """Empty the cache. Called first of all."""

    @abstractmethod
    def extend(self, ids: Tokens) -> Logits:
        """Return the logits [T, V] of `ids` [T] appended to the cache that is there."""

    def logits(self, ids: Tokens) -> Logits:
        """Return the logits [T, V] of one pass over `ids` [T] from an empty cache."""
        self.reset()
        return self.extend(ids)

    def native(self) -> PlainRuntime:
        return self

    def tokens(self, ids: Sequence[int], max_tokens: int) -> Iterator[int]:
        """Yield the greedy continuation of `ids` up to an id that ends generation."""
        return greedy(self, ids, max_tokens, self.stops())
