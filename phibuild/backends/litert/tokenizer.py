"""The tokenizer of an artifact against the source's: a bundle's own, by LiteRT-LM."""

from __future__ import annotations

from pathlib import Path

from phibuild.backends.litert.bundle import METADATA, read_section, read_sections
from phibuild.backends.litert.files import BUNDLE
from phibuild.backends.litert.metadata import start, stops
from phibuild.worker.tokenizer_check import (
    AROUND,
    Difference,
    Facts,
    TokenizerCheck,
    check_tokenizer,
    nothing_to_explain,
)
from phibuild.worker.tokenizer_json import TokenizerJson

_START = (
    "LiteRT-LM would put a start token before a conversation too, where the chat template has none"
)


class BundleTokenizer(TokenizerJson):
    """What a bundle says of texts. LiteRT-LM reads its tokenizer.json by Hugging Face's tokenizers,
    and puts the start tokens of its metadata before a text."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        path = folder / BUNDLE
        self._metadata = read_section(path, read_sections(path)[METADATA])

    def encode(self, text: str, *, special: bool = False, around: bool = False) -> list[int]:
        ids = super().encode(text)
        return [*start(self._metadata), *ids] if special or around else ids

    def stops(self) -> list[int]:
        return stops(self._metadata)


def artifact_tokenizer(folder: Path) -> TokenizerJson:
    """Return the tokenizer of an artifact: that of its bundle, or the files beside the model."""
    return BundleTokenizer(folder) if (folder / BUNDLE).is_file() else TokenizerJson(folder)


def check(folder: Path, facts: Facts) -> TokenizerCheck:
    """Compare an artifact's tokenizer with what Transformers makes of the probes. Raises
    WorkerError if it differs where LiteRT-LM could do as Transformers does."""
    own = artifact_tokenizer(folder)
    if not isinstance(own, BundleTokenizer) or not facts.templates:
        return check_tokenizer(facts, own, nothing_to_explain)
    return check_tokenizer(facts, own, _explain)


def _explain(difference: Difference) -> str | None:
    return _START if difference.kind == AROUND else None
