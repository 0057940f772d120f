"""An MLX artifact loaded by mlx-lm on the CPU: logits, cached steps, text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map
from mlx_lm.generate import stream_generate
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model, load_tokenizer

from phibuild.evaluate.judge import Logits, Tokens


class MlxRuntime:
    """The artifact with its stored weights and mlx-lm's own kernels, quantized ones included.

    Float arrays (scales, biases, norms, the weights of fp16 artifacts) are widened to float32,
    which loses nothing, so activations are float32 too: MLX's CPU kernels compute bfloat16 and
    float16 some ten to a hundred times more slowly, and a GPU accumulates in float32 as well.
    """

    def __init__(self, folder: Path) -> None:
        mx.set_default_device(mx.cpu)
        self._folder = folder
        self._model, self._config = load_model(folder, lazy=True)
        self._model.update(tree_map(_widened, self._model.parameters()))
        mx.eval(self._model.parameters())
        self._cache = make_prompt_cache(self._model)

    def logits(self, ids: Tokens) -> Logits:
        """Return the logits [T, V] of one pass over `ids` [T] from an empty cache."""
        self._cache = make_prompt_cache(self._model)
        mx.clear_cache()
        return self.extend(ids)

    def extend(self, ids: Tokens) -> Logits:
        """Return the logits [T, V] of `ids` [T] appended to the cache that is there."""
        logits = self._model(mx.array(ids)[None], cache=self._cache)[0]
        mx.eval(logits)  # nothing has been computed up to here
        return np.array(logits, dtype=np.float32)

    def native(self) -> MlxRuntime:
        return self

    def generate(self, prompt: str, max_tokens: int) -> Iterator[str]:
        """Yield the text that follows `prompt`, greedily, up to an end-of-sequence id."""
        tokenizer = load_tokenizer(
            self._folder,
            {"trust_remote_code": False, "local_files_only": True},
            eos_token_ids=self._config["eos_token_id"],
        )
        padding = _padding(tokenizer, self._config["vocab_size"])

        def without_padding(_: mx.array, logits: mx.array) -> mx.array:
            # mlx-lm's detokenizer raises IndexError at an id that no token has.
            return mx.where(padding, -mx.inf, logits)

        for step in stream_generate(
            self._model,
            tokenizer,
            prompt,
            max_tokens=max_tokens,
            logits_processors=[without_padding],
        ):
            yield step.text


def _widened(array: mx.array) -> mx.array:
    return array.astype(mx.float32) if mx.issubdtype(array.dtype, mx.floating) else array


def _padding(tokenizer: Any, vocabulary: int) -> mx.array:
    """Return for each id of the padded vocabulary whether no token has it."""
    padding = np.ones(vocabulary, dtype=np.bool_)
    padding[[number for number in tokenizer.get_vocab().values() if number < vocabulary]] = False
    return mx.array(padding)
