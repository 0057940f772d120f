"""Run an artifact with Transformers' modules on the CPU.

Weights are used as the artifact holds them: fp16 ones, and int4 and int8 ones after
compressed-tensors has dequantized them in the artifact's dtype. They are then widened to fp32 for
the arithmetic: CPUs multiply 16-bit matrices slowly and with other intermediate rounding than the
GPUs that this format is for, and neither says anything about the artifact. Of a large model only
some layers stay widened; the others are read again in every pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache

from phibuild.backends.pytorch.layerwise import LayerwisePhi3
from phibuild.backends.pytorch.memory import WIDENED_BYTES
from phibuild.backends.pytorch.threads import use_threads
from phibuild.backends.pytorch.tokenizer import end_ids
from phibuild.backends.pytorch.tokenizing import encode, load_tokenizer, prefix
from phibuild.worker.chat import ChatFormat, read_format
from phibuild.worker.generation import greedy
from phibuild.worker.tokenizer_json import byte_tokens

Tokens = NDArray[np.int64]
Logits = NDArray[np.float32]


def load(folder: Path, threads: int, budget_bytes: int = WIDENED_BYTES) -> TransformersRuntime:
    """Load the artifact in `folder`; `budget_bytes` bounds the fp32 weights that are kept."""
    use_threads(threads)
    with torch.inference_mode():
        model = LayerwisePhi3(folder, budget_bytes=budget_bytes)
    return TransformersRuntime(folder, model)


class TransformersRuntime:
    """A model with its key-value cache and tokenizer; see phibuild.worker.judge.Runtime."""

    def __init__(self, folder: Path, model: LayerwisePhi3) -> None:
        self._folder = folder
        self._model = model
        self._tokenizer = load_tokenizer(folder)
        self._ends = end_ids(folder, model.config)
        self._cache = DynamicCache()

    def native(self) -> TransformersRuntime:
        """Return itself: there is no other CPU runtime of this format to time."""
        return self

    def logits(self, ids: Tokens) -> Logits:
        """Return the logits [T, V] of one pass over `ids` [T] from an empty cache."""
        self._cache = DynamicCache()
        return self.extend(ids)

    def extend(self, ids: Tokens) -> Logits:
        """Return the logits [T, V] of `ids` [T] after those in the cache."""
        tokens = torch.from_numpy(np.asarray(ids, dtype=np.int64))
        logits = torch.empty(len(tokens), self._model.config.vocab_size)
        with torch.inference_mode():
            positions = self._model.positions(self._cache.get_seq_length(), len(tokens))
            mask = self._model.mask(len(tokens), self._cache)
            hidden = self._model.embed(tokens[None])
            for layer in self._model.layers():
                hidden = layer(
                    hidden,
                    attention_mask=mask,
                    position_embeddings=positions,
                    past_key_values=self._cache,
                    use_cache=True,
                )
            hidden = self._model.norm(hidden)[0]
            for first, rows in self._model.head():
                torch.mm(hidden, rows.T, out=logits[:, first : first + len(rows)])
        result: Logits = logits.numpy()
        return result

    def chat_format(self) -> ChatFormat:
        return read_format(self._folder)

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Return the ids of `text`; with `special` after BOS where the tokenizer puts one."""
        start = prefix(self._tokenizer) if special else []
        return start + [int(token) for token in encode(self._tokenizer, text)]

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def byte_tokens(self) -> frozenset[int]:
        return byte_tokens(self._tokenizer.get_vocab())

    def tokens(self, ids: Sequence[int], max_tokens: int) -> Iterator[int]:
        """Yield the greedy continuation of `ids` up to an id that ends a text."""
        return greedy(self, ids, max_tokens, self._ends)
