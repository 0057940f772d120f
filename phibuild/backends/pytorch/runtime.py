"""Run an artifact with Transformers' modules on the CPU.

Weights are used as the artifact holds them: fp16 ones, and int4 and int8 ones after
compressed-tensors has dequantized them in the artifact's dtype. They are then widened to fp32 for
the arithmetic: CPUs multiply 16-bit matrices slowly and with other intermediate rounding than the
GPUs that this format is for, and neither says anything about the artifact. Of a large model only
some layers stay widened; the others are read again in every pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache, GenerationConfig

from phibuild.backends.pytorch.layerwise import LayerwisePhi3
from phibuild.backends.pytorch.memory import WIDENED_BYTES
from phibuild.backends.pytorch.tokenizing import encode, load_tokenizer, prefix

Tokens = NDArray[np.int64]
Logits = NDArray[np.float32]
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def load(folder: Path, threads: int, budget_bytes: int = WIDENED_BYTES) -> TransformersRuntime:
    """Load the artifact in `folder`; `budget_bytes` bounds the fp32 weights that are kept."""
    torch.set_num_threads(threads)
    with torch.inference_mode():
        model = LayerwisePhi3(folder, budget_bytes)
    return TransformersRuntime(model, load_tokenizer(folder), _ends(folder, model.config))


def _ends(folder: Path, config: Any) -> set[int]:
    """Return the ids that end a text, from where Transformers takes them."""
    if (folder / "generation_config.json").exists():
        generation = GenerationConfig.from_pretrained(folder, local_files_only=True)
    else:
        generation = GenerationConfig.from_model_config(config)
    ends = generation.eos_token_id
    return set(ends) if isinstance(ends, list) else {ends}


class TransformersRuntime:
    """A model with its key-value cache and tokenizer; see phibuild.evaluate.judge.Runtime."""

    def __init__(self, model: LayerwisePhi3, tokenizer: Any, ends: set[int]) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._ends = ends
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

    def generate(self, prompt: str, max_tokens: int) -> Iterator[str]:
        """Yield the text that greedy decoding appends to `prompt`, piece by piece."""
        start = prefix(self._tokenizer)
        ids = np.concatenate([np.array(start, dtype=np.int64), encode(self._tokenizer, prompt)])
        if not len(ids):
            raise ValueError("the prompt has no tokens")
        text = TextStream(self._tokenizer, ids.tolist())
        logits = self.logits(ids)
        for _ in range(max_tokens):
            token = int(logits[-1].argmax())
            if token in self._ends:
                return
            piece = text.add(token)
            if piece:
                yield piece
            logits = self.extend(np.array([token]))


class TextStream:
    """Turns ids into text as they come, waiting where a character is not complete.

    Ids are decoded together with some that came before: what a token reads as depends on its
    neighbours (sentencepiece drops the first space, bytes of one character are several tokens).
    """

    _CONTEXT = 8  # ids of the prompt that are decoded along

    def __init__(self, tokenizer: Any, prompt: list[int]) -> None:
        self._tokenizer = tokenizer
        self._ids = prompt[-self._CONTEXT :]
        self._text = self._decode()

    def _decode(self) -> str:
        text: str = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        return text

    def add(self, token: int) -> str:
        """Return the text that `token` completes; empty in the middle of a character."""
        self._ids.append(token)
        text = self._decode()
        if text.endswith(_REPLACEMENT):
            return ""
        piece = text[len(self._text) :]
        self._ids = self._ids[-self._CONTEXT :]
        self._text = self._decode()
        return piece
