"""An MLX artifact in mlx-lm's own kernels on the CPU: its speed, and text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten, tree_map, tree_unflatten
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model, load_tokenizer

from phibuild.backends.mlx.memory import RESIDENT_BYTES
from phibuild.worker.chat import ChatFormat, read_format
from phibuild.worker.interface import Logits, Tokens
from phibuild.worker.json_values import as_ids
from phibuild.worker.safetensors import shard_paths
from phibuild.worker.tokenizer_json import byte_tokens

if TYPE_CHECKING:
    from mlx_lm.tokenizer_utils import TokenizerWrapper


class NativeRuntime:
    """The artifact with its stored weights and mlx-lm's modules, quantized ones included.

    Float arrays (scales, biases, norms, the weights of fp16 artifacts) are widened to float32,
    which loses nothing, so activations are float32 too: MLX's CPU kernels compute bfloat16 and
    float16 some ten to a hundred times more slowly, and a GPU accumulates in float32 as well.
    Above `RESIDENT_BYTES` the weights are read anew in each pass, a layer at a time.
    """

    def __init__(self, folder: Path) -> None:
        mx.set_default_device(mx.cpu)
        self._folder = folder
        self._model, self._config = load_model(folder, lazy=True)
        self._model.update(tree_map(_widened, self._model.parameters()))
        weights = [array for _, array in tree_flatten(self._model.parameters())]
        if sum(array.nbytes for array in weights) <= RESIDENT_BYTES:
            mx.eval(weights)
        else:
            mx.set_cache_limit(0)
            self._stream()
        self._cache = make_prompt_cache(self._model)

    def _stream(self) -> None:
        """Let the large modules have their weights only while they run."""
        inner = self._model.model
        inner.layers = [
            _Transient(layer, f"model.layers.{number}.", self._folder)
            for number, layer in enumerate(inner.layers)
        ]
        inner.embed_tokens = _Transient(inner.embed_tokens, "model.embed_tokens.", self._folder)
        if "lm_head" in self._model:
            self._model.lm_head = _Transient(self._model.lm_head, "lm_head.", self._folder)

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

    def native(self) -> NativeRuntime:
        return self

    def chat_format(self) -> ChatFormat:
        return read_format(self._folder)

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Return the ids of `text`; with `special` BOS is added where the tokenizer does so."""
        return list(self._tokenizer.encode(text, add_special_tokens=special))

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def byte_tokens(self) -> frozenset[int]:
        return byte_tokens(self._tokenizer.get_vocab())

    @cached_property
    def _tokenizer(self) -> TokenizerWrapper:
        options = {"trust_remote_code": False, "local_files_only": True}
        return load_tokenizer(self._folder, options)

    def tokens(self, ids: Sequence[int], max_tokens: int) -> Iterator[int]:
        """Yield the greedy continuation of `ids` up to an end-of-sequence id."""
        ends = as_ids(self._config["eos_token_id"])
        for token, _ in generate_step(mx.array(ids), self._model, max_tokens=max_tokens):
            if token in ends:
                return
            yield int(token)


class _Transient:
    """A module whose weights are in memory only while it runs."""

    def __init__(self, module: nn.Module, prefix: str, folder: Path) -> None:
        self._module, self._prefix, self._folder = module, prefix, folder
        self._unread = module.parameters()  # never computed, hence never read

    def __call__(self, *inputs: mx.array) -> mx.array:
        return self._run(self._module, *inputs)

    def as_linear(self, x: mx.array) -> mx.array:
        """Run a tied embedding as the head."""
        return self._run(self._module.as_linear, x)

    def _run(self, function: Callable[..., mx.array], *inputs: mx.array) -> mx.array:
        weights = {
            name.removeprefix(self._prefix): _widened(array)
            for path in shard_paths(self._folder)
            for name, array in mx.load(str(path)).items()
            if name.startswith(self._prefix)
        }
        self._module.update(tree_unflatten(list(weights.items())))
        output = function(*inputs)
        mx.eval(output)
        self._module.update(self._unread)
        return output


def _widened(array: mx.array) -> mx.array:
    return array.astype(mx.float32) if mx.issubdtype(array.dtype, mx.floating) else array
