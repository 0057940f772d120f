"""What a runtime that has no tokenizer, or no generator, of its own is made of: text by the
artifact's tokenizer.json, which needs the package tokenizers, and a continuation by its logits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from phibuild.worker.architecture import Architecture
from phibuild.worker.chat import ChatFormat, read_format
from phibuild.worker.companions import read_json
from phibuild.worker.generation import byte_tokens, greedy
from phibuild.worker.interface import Logits, Tokens
from phibuild.worker.json_values import as_ids
from phibuild.worker.tokenizer_check import TOKENIZER

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ARCHITECTURE = "architecture.json"
"""The file of an artifact with `Architecture.to_json`."""


class TokenizerJson:
    """The text of an artifact's folder: what `phibuild.worker.interface.Speaker` has besides
    `tokens`, and `phibuild.worker.tokenizer_check.OwnTokenizer`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(self.folder / TOKENIZER))

    def chat_format(self) -> ChatFormat:
        return read_format(self.folder)

    def encode(self, text: str, *, special: bool = False, around: bool = False) -> list[int]:
        """Return the ids of `text`; with `special` or `around` between those that the tokenizer
        puts around a text by itself."""
        return list(self._tokenizer.encode(text, add_special_tokens=special or around).ids)

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def byte_tokens(self) -> frozenset[int]:
        return byte_tokens(self._tokenizer.get_vocab())

    def stops(self) -> list[int]:
        """Return the ids that end generation: those of the artifact's generation_config.json."""
        config = read_json(self.folder / "generation_config.json", optional=True)
        return as_ids(config.get("eos_token_id"))


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
