"""The tokenizer of an MLX artifact, as mlx-lm loads it, compared with the checkpoint's."""

from __future__ import annotations

import json
from pathlib import Path

from mlx_lm.utils import load_tokenizer

from phibuild.worker.tokenizer_check import (
    Facts,
    TokenizerCheck,
    check_tokenizer,
    nothing_to_explain,
)


class MlxTokenizer:
    """The tokenizer of an artifact's folder: Transformers' own, in mlx-lm's wrapping."""

    def __init__(self, folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self._tokenizer = load_tokenizer(
            folder,
            {"trust_remote_code": False, "local_files_only": True},
            eos_token_ids=config.get("eos_token_id"),
        )

    def encode(self, text: str, *, around: bool) -> list[int]:
        """Return the ids of a text; `around`: with those that are added to it."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=around)
        return ids

    def stops(self) -> list[int]:
        """Return the ids that end generation."""
        return list(self._tokenizer.eos_token_ids)


def check(folder: Path, facts: Facts) -> TokenizerCheck:
    """Compare an artifact's tokenizer with what Transformers makes of the probes of the source.

    Raises WorkerError if they differ.
    """
    return check_tokenizer(facts, MlxTokenizer(folder), nothing_to_explain)
