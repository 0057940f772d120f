"""The tokenizer of an artifact, as Transformers loads it, compared with the checkpoint's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from transformers import AutoConfig, GenerationConfig

from phibuild.backends.pytorch.tokenizing import load_tokenizer
from phibuild.worker.json_values import as_ids
from phibuild.worker.tokenizer_check import (
    Facts,
    TokenizerCheck,
    check_tokenizer,
    nothing_to_explain,
)

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def end_ids(folder: Path, config: PretrainedConfig) -> set[int]:
    """Return the ids that end a text, from where Transformers takes them: generation_config.json,
    else the model's configuration."""
    if (folder / "generation_config.json").exists():
        generation = GenerationConfig.from_pretrained(folder, local_files_only=True)
    else:
        generation = GenerationConfig.from_model_config(config)
    return set(as_ids(generation.eos_token_id))


class TransformersTokenizer:
    """The tokenizer of an artifact's folder."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = load_tokenizer(folder)
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        self._ends = end_ids(folder, config)

    def encode(self, text: str, *, around: bool) -> list[int]:
        """Return the ids of a text; `around`: with those that are added to it."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=around, verbose=False).input_ids
        return ids

    def stops(self) -> list[int]:
        """Return the ids that end generation."""
        return sorted(self._ends)


def check(folder: Path, facts: Facts) -> TokenizerCheck:
    """Compare an artifact's tokenizer with what Transformers makes of the probes of the source.

    Raises WorkerError if they differ.
    """
    return check_tokenizer(facts, TransformersTokenizer(folder), nothing_to_explain)
