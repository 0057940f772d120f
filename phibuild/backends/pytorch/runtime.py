"""Run an artifact with Transformers on the CPU.

Weights are used as the artifact holds them: fp16 ones, and int4 and int8 ones after
compressed-tensors has dequantized them in the artifact's dtype. They are then widened to fp32 for
the arithmetic: CPUs multiply 16-bit matrices slowly and with other intermediate rounding than the
GPUs that this format is for, and neither says anything about the artifact.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import CompressedTensorsConfig, DynamicCache, PreTrainedModel

from phibuild.backends.pytorch.checkpoint_model import load_model
from phibuild.backends.pytorch.tokenizing import encode, load_tokenizer, prefix

Tokens = NDArray[np.int64]
Logits = NDArray[np.float32]
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def load(folder: Path, threads: int) -> TransformersRuntime:
    """Load the artifact in `folder`."""
    torch.set_num_threads(threads)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    dtype: torch.dtype = getattr(torch, config.get("dtype") or config["torch_dtype"])
    options: dict[str, Any] = {}
    if "quantization_config" in config:
        options["quantization_config"] = CompressedTensorsConfig(dequantize=True)
    return TransformersRuntime(load_model(folder, dtype, **options).float(), load_tokenizer(folder))


class TransformersRuntime:
    """A model with its key-value cache and tokenizer; see phibuild.evaluate.judge.Runtime."""

    def __init__(self, model: PreTrainedModel, tokenizer: Any) -> None:
        self._model = model
        self._tokenizer = tokenizer
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
        with torch.inference_mode():
            output = self._model(
                input_ids=torch.from_numpy(np.asarray(ids, dtype=np.int64))[None],
                past_key_values=self._cache,
                use_cache=True,
            )
        logits: Logits = output.logits[0].float().numpy()
        return logits

    def generate(self, prompt: str, max_tokens: int) -> Iterator[str]:
        """Yield the text that greedy decoding appends to `prompt`, piece by piece."""
        start = prefix(self._tokenizer)
        ids = np.concatenate([np.array(start, dtype=np.int64), encode(self._tokenizer, prompt)])
        if not len(ids):
            raise ValueError("the prompt has no tokens")
        ends = self._model.generation_config.eos_token_id
        stop = set(ends) if isinstance(ends, list) else {ends}
        text = TextStream(self._tokenizer, ids.tolist())
        logits = self.logits(ids)
        for _ in range(max_tokens):
            token = int(logits[-1].argmax())
            if token in stop:
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
