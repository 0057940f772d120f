"""The text of an artifact whose format has no tokenizer of its own: by its tokenizer.json. Needs
the package tokenizers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from phibuild.worker.chat import ChatFormat, read_format
from phibuild.worker.companions import read_json
from phibuild.worker.json_values import as_ids
from phibuild.worker.tokenizer_check import TOKENIZER

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def byte_tokens(vocabulary: Mapping[str, int]) -> frozenset[int]:
    """Return the tokens that stand for one byte where a character has no token: <0x00> to <0xFF>
    of sentencepiece's vocabularies."""
    return frozenset(token for text, token in vocabulary.items() if _BYTE.fullmatch(text))


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
