"""An artifact in its own runtime, onnxruntime-genai.

Whatever provider an artifact is made for, it runs on the CPU here: the providers of its
configuration are cleared. Every generator gets the `max_length` that it needs, since its KV cache
is allocated at once and genai_config.json asks for the whole context of the model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnxruntime_genai as og
from numpy.typing import NDArray

from phibuild.worker.json_values import as_ids
from phibuild.worker.tokenizer_json import TokenizerJson

Logits = NDArray[np.float32]
Tokens = NDArray[np.int64]

_SPARE = 64
"""Positions that a cache has beyond the tokens it was made for."""


class OrtGenaiRuntime(TokenizerJson):
    """A loaded artifact. Not safe for use from several threads at once. Its text is by the
    artifact's tokenizer.json as its makers read it: with the BOS that it asks for, which
    onnxruntime-genai's own tokenizer leaves out."""

    def __init__(self, folder: Path, threads: int) -> None:
        super().__init__(folder)
        config = og.Config(str(folder))
        config.clear_providers()
        session = {"intra_op_num_threads": threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
        self._model = og.Model(config)
        text = (folder / "genai_config.json").read_text(encoding="utf-8")
        said = json.loads(text)["model"]
        self._eos, self._context = as_ids(said["eos_token_id"]), int(said["context_length"])
        self._generator: og.Generator = None  # until there is a cache
        self._capacity = 0
        self._fed = np.empty(0, np.int32)

    def logits(self, ids: Tokens) -> Logits:
        """Return the logits [T, V] of one pass over `ids` [T] from an empty cache."""
        self._start(len(ids) + _SPARE)
        return self._append(ids.astype(np.int32))

    def extend(self, ids: Tokens) -> Logits:
        """Return the logits [T, V] of `ids` [T] appended to the cache that is there."""
        fed = self._fed
        if self._generator is None or len(fed) + len(ids) > self._capacity:
            self._start(2 * (len(fed) + len(ids)) + _SPARE)
            if len(fed):
                self._append(fed)
        return self._append(ids.astype(np.int32))

    def native(self) -> OrtGenaiRuntime:
        """Return this runtime: it is the one whose speed counts."""
        return self

    def tokens(self, ids: Sequence[int], max_tokens: int) -> Iterator[int]:
        """Yield the greedy continuation of `ids` up to an EOS token, `max_tokens` or the end of the
        model's positions."""
        self._start(len(ids) + max_tokens)
        self._generator.append_tokens(np.array(ids, np.int32))
        for _ in range(min(max_tokens, self._context - len(ids))):
            self._generator.generate_next_token()
            token = int(self._generator.get_next_tokens()[0])
            if token in self._eos:
                return
            yield token

    def _start(self, capacity: int) -> None:
        capacity = min(capacity, self._context)  # the runtime refuses more
        self._generator = None  # frees the old cache first
        parameters = og.GeneratorParams(self._model)
        parameters.set_search_options(max_length=capacity, do_sample=False)
        self._generator = og.Generator(self._model, parameters)
        self._capacity = capacity
        self._fed = np.empty(0, np.int32)

    def _append(self, ids: NDArray[np.int32]) -> Logits:
        self._generator.append_tokens(ids)
        self._fed = np.concatenate([self._fed, ids])
        logits: Logits = np.asarray(self._generator.get_output("logits"))[0].astype(np.float32)
        return logits
