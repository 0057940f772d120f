"""An artifact at work: LiteRT's compiled model on the CPU."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from ai_edge_litert.compiled_model import CompiledModel
from ai_edge_litert.options import CpuOptions, Options
from ai_edge_litert.tensor_buffer import TensorBuffer
from numpy.typing import NDArray

from phibuild.backends.litert.graph import DECODE, PREFILL, SCORES
from phibuild.backends.litert.inspect import model_section
from phibuild.backends.litert.layout import PREFILL_TOKENS
from phibuild.backends.litert.scoring import copy_with_scores
from phibuild.backends.litert.tokenizer import artifact_tokenizer
from phibuild.worker.architecture import read_architecture
from phibuild.worker.companions import read_json
from phibuild.worker.generation import greedy
from phibuild.worker.interface import Logits, Tokens
from phibuild.worker.protocol import WorkerError
from phibuild.worker.tokenizer_json import TokenizerJson

_MASKED = np.float32(-0.7 * np.finfo(np.float32).max)  # LiteRT-LM's own
_CACHE = "weights.xnnpack_cache"
"""Weights as XNNPACK's kernels read them: in a file, they are there once for both signatures, and
the system can drop their pages."""


class LiteRtRuntime(TokenizerJson):
    """The model of an artifact folder with `threads` threads (0: as many as there are cores)."""

    def __init__(self, folder: Path, threads: int) -> None:
        super().__init__(folder)
        self._stops = artifact_tokenizer(folder).stops()
        self._scratch = tempfile.TemporaryDirectory()
        scratch = Path(self._scratch.name)
        cpu = CpuOptions(
            num_threads=threads or os.cpu_count() or 1,
            xnnpack_weight_cache_path=str(scratch / _CACHE),
        )
        arch = read_architecture(read_json(folder / "config.json"))
        copy = scratch / "model.tflite"
        copy_with_scores(*model_section(folder), arch, copy)
        self._model = CompiledModel.from_file(str(copy), options=Options(cpu_options=cpu))
        shapes = self._model.get_input_tensor_details(DECODE)
        self._context = int(shapes["mask"]["shape"][-1])
        self._vocabulary = int(self._model.get_output_tensor_details(DECODE)["logits"]["shape"][-1])
        caches = {name: self._input(DECODE, name) for name in shapes if name.startswith("kv_")}
        for name, buffer in caches.items():
            buffer.write(np.zeros(shapes[name]["shape"], np.float32))
        own = ("tokens", "input_pos", "mask")
        self._inputs = {
            name: {**caches, **{one: self._input(name, one) for one in own}}
            for name in (PREFILL, DECODE, SCORES)
        }
        self._logits = {
            name: self._model.create_output_buffer_by_name(name, "logits")
            for name in (DECODE, SCORES)
        }
        # The caches are updated where they are.
        self._outputs = {
            PREFILL: caches,
            **{name: {**caches, "logits": logits} for name, logits in self._logits.items()},
        }
        self._length = 0

    def _input(self, signature: str, name: str) -> TensorBuffer:
        return self._model.create_input_buffer_by_name(signature, name)

    def logits(self, ids: Tokens) -> Logits:
        """Return the logits [T, V] of `ids` [T] from an empty cache, in chunks."""
        self._length = 0
        parts = []
        while len(ids) > 1 and self._length + PREFILL_TOKENS <= self._context:
            chunk, ids = ids[:PREFILL_TOKENS], ids[PREFILL_TOKENS:]
            padded = np.zeros(PREFILL_TOKENS, np.int64)  # what follows is not seen
            padded[: len(chunk)] = chunk
            self._run(SCORES, padded)
            self._length -= PREFILL_TOKENS - len(chunk)
            parts.append(self._read(SCORES, PREFILL_TOKENS)[: len(chunk)])
        if len(ids):
            parts.append(self.extend(ids))
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    def prefill(self, ids: Tokens) -> None:
        """Feed `ids` to an empty cache as LiteRT-LM feeds a prompt: in chunks, without logits."""
        self._length = 0
        whole = len(ids) // PREFILL_TOKENS * PREFILL_TOKENS
        for first in range(0, whole, PREFILL_TOKENS):
            self._run(PREFILL, ids[first : first + PREFILL_TOKENS])
        self.extend(ids[whole:])

    def extend(self, ids: Tokens) -> Logits:
        """Return the logits [T, V] of `ids` [T] appended to the cache that is there, one by one."""
        result = np.empty((len(ids), self._vocabulary), np.float32)
        for row, token in enumerate(ids):
            self._run(DECODE, np.asarray([token]))
            result[row] = self._read(DECODE, 1)[0]
        return result

    def _read(self, signature: str, tokens: int) -> Logits:
        count = tokens * self._vocabulary
        values = np.asarray(self._logits[signature].read(count, np.float32), np.float32)
        return values.reshape(tokens, self._vocabulary)

    def _run(self, signature: str, ids: NDArray[np.int64]) -> None:
        first, end = self._length, self._length + len(ids)
        if end > self._context:
            raise WorkerError(
                f"the artifact's cache holds {self._context} tokens: give it a larger context"
            )
        inputs = self._inputs[signature]
        places = np.arange(first, end, dtype=np.int32)
        hidden = np.arange(self._context) > places[:, None]
        inputs["tokens"].write(ids.astype(np.int32))
        inputs["input_pos"].write(places)
        inputs["mask"].write(np.where(hidden, _MASKED, np.float32(0)))
        self._model.run_by_name(signature, inputs, self._outputs[signature])
        self._length = end

    def native(self) -> LiteRtRuntime:
        """Return itself: these are the CPU's own kernels."""
        return self

    def tokens(self, ids: Sequence[int], max_tokens: int) -> Iterator[int]:
        """Yield the greedy continuation of `ids` up to an id that ends generation."""
        return greedy(self, ids, max_tokens, self._stops)
