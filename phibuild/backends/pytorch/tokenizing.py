"""The tokenizer of a local checkpoint folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from transformers import AutoTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Return the folder's own tokenizer."""
    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> NDArray[np.int64]:
    """Return the ids of `text` alone, without special tokens around it."""
    # A text longer than the model's context is no mistake here: it is cut into windows.
    ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    return np.asarray(ids, dtype=np.int64)


def prefix(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the BOS id in a list if the tokenizer puts one before a text by itself, or []."""
    ids = tokenizer("").input_ids
    return [int(ids[0])] if ids and ids[0] == tokenizer.bos_token_id else []
