"""Windows of ids, evenly spaced over a text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from phibuild.backends.pytorch.tokenizing import encode, load_tokenizer, prefix
from phibuild.worker.protocol import WorkerError

Windows = NDArray[np.int32]


@dataclass(frozen=True)
class TokenizedText:
    """Ids of a text, and what the tokenizer puts before a text by itself (BOS, or nothing)."""

    ids: NDArray[np.int64]
    start: list[int]

    def room(self, length: int) -> int:
        """Return how many ids of the text a window of `length` ids takes."""
        return length - len(self.start)

    def windows(self, most: int, length: int) -> Windows:
        """Return windows of ids [W, length] that begin as the tokenizer begins a text.

        They are evenly spaced from the first id of the text to the last and do not overlap; W is
        `most`, or less where the text is short, 0 if it has not enough for one.
        """
        taken = self.room(length)
        count = min(most, len(self.ids) // taken)
        windows = np.empty((count, length), dtype=np.int32)
        windows[:, : len(self.start)] = self.start
        for number in range(count):
            first = number * (len(self.ids) - taken) // max(count - 1, 1)
            windows[number, len(self.start) :] = self.ids[first : first + taken]
        return windows


def read_text(source: Path, text: Path, vocabulary: int, purpose: str) -> TokenizedText:
    """Return the ids of the file `text` by the tokenizer of the folder `source`.

    Raises WorkerError, naming the text by its `purpose`, if it is not UTF-8, or if the tokenizer
    makes an id that the model has not.
    """
    try:
        content = text.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise WorkerError(f"the {purpose} text {text.name} is not UTF-8: {error}") from error
    tokenizer = load_tokenizer(source)
    tokenized = TokenizedText(encode(tokenizer, content), prefix(tokenizer))
    largest = max(tokenized.ids.max(initial=0), *tokenized.start, 0)
    if largest >= vocabulary:
        raise WorkerError(
            f"the tokenizer makes id {largest:,}, the model's vocabulary ends at "
            f"{vocabulary - 1:,}: tokenizer and weights are not of the same model"
        )
    return tokenized
