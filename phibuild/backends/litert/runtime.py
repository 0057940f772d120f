"""An artifact at work: LiteRT's compiled model on the CPU, token by token as LiteRT-LM decodes."""

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

from phibuild.backends.litert.inspect import model_section
from phibuild.backends.litert.tokenizer import artifact_tokenizer
from phibuild.worker.chat import ChatFormat
from phibuild.worker.generation import greedy
from phibuild.worker.interface import Logits, Tokens
from phibuild.worker.protocol import WorkerError

_DECODE, _PREFILL = "decode", "prefill_"
_MASKED = np.float32(-0.7 * np.finfo(np.float32).max)  # LiteRT-LM's own
_CACHE = "weights.xnnpack_cache"
"""Weights as XNNPACK's kernels read them: in a file, they are there once for both signatures, and
the system can drop their pages."""


class LiteRtRuntime:
    """The model of an artifact folder with `threads` threads (0: as many as there are cores)."""

    def __init__(self, folder: Path, threads: int) -> None:
        self._tokenizer = artifact_tokenizer(folder)
        self._scratch = tempfile.TemporaryDirectory()
        scratch = Path(self._scratch.name)
        cpu = CpuOptions(
            num_threads=threads or os.cpu_count() or 1,
            xnnpack_weight_cache_path=str(scratch / _CACHE),
        )
        self._model = CompiledModel.from_file(
            str(_model_file(folder, scratch)), options=Options(cpu_options=cpu)
        )
        names = self._model.get_signature_list()
        self._prefill = next(name for name in names if name.startswith(_PREFILL))
        shapes = self._model.get_input_tensor_details(_DECODE)
        self._context = int(shapes["mask"]["shape"][-1])
        self._vocabulary = int(self._model.get_output_tensor_details(_DECODE)["logits"]["shape"][-1])
        self._chunk = int(self._model.get_input_tensor_details(self._prefill)["tokens"]["shape"][-1])
        caches = {name: self._input(_DECODE, name) for name in shapes if name.startswith("kv_")}
        for name, buffer in caches.items():
            buffer.write(np.zeros(shapes[name]["shape"], np.float32))
        self._logits = self._model.create_output_buffer_by_name(_DECODE, "logits")
        self._runs = {
            name: {**caches, **{own: self._input(name, own) for own in ("tokens", "input_pos", "mask")}}
            for name in (_DECODE, self._prefill)
        }
        # The caches are updated where they are.
        self._results = {_DECODE: {**caches, "logits": self._logits}, self._prefill: caches}
        self._length = 0

    def _input(self, signature: str, name: str) -> TensorBuffer:
        return self._model.create_input_buffer_by_name(signature, name)

    def logits(self, ids: Tokens) -> Logits:
        """Return the logits [T, V] of `ids` [T], decoded one by one from an empty cache."""
        self._length = 0
        return self.extend(ids)

    def prefill(self, ids: Tokens) -> None:
        """Feed `ids` to an empty cache as LiteRT-LM feeds a prompt: in chunks, without logits."""
        self._length = 0
        whole = len(ids) // self._chunk * self._chunk
        for first in range(0, whole, self._chunk):
            self._run(self._prefill, ids[first : first + self._chunk])
        self.extend(ids[whole:])

    def extend(self, ids: Tokens) -> Logits:
        """Return the logits [T, V] of `ids` [T] appended to the cache that is there."""
        result = np.empty((len(ids), self._vocabulary), np.float32)
        for row, token in enumerate(ids):
            self._run(_DECODE, np.asarray([token]))
            result[row] = self._logits.read(self._vocabulary, np.float32)
        return result

    def _run(self, signature: str, ids: NDArray[np.int64]) -> None:
        first, end = self._length, self._length + len(ids)
        if end > self._context:
            raise WorkerError(
                f"the artifact's cache holds {self._context} tokens: give it a larger context"
            )
        inputs = self._runs[signature]
        places = np.arange(first, end, dtype=np.int32)
        hidden = np.arange(self._context) > places[:, None]
        inputs["tokens"].write(ids.astype(np.int32))
        inputs["input_pos"].write(places)
        inputs["mask"].write(np.where(hidden, _MASKED, np.float32(0)))
        self._model.run_by_name(signature, inputs, self._results[signature])
        self._length = end

    def native(self) -> LiteRtRuntime:
        """Return itself: these are the CPU's own kernels."""
        return self

    def chat_format(self) -> ChatFormat:
        return self._tokenizer.chat_format()

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Return the ids of `text`; with `special` the bundle's start tokens are added."""
        return self._tokenizer.encode(text, special=special)

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids)

    def byte_tokens(self) -> frozenset[int]:
        return self._tokenizer.byte_tokens()

    def tokens(self, ids: Sequence[int], max_tokens: int) -> Iterator[int]:
        """Yield the greedy continuation of `ids` up to an id that ends generation."""
        return greedy(self, ids, max_tokens, self._tokenizer.stops())


def _model_file(folder: Path, scratch: Path) -> Path:
    """Return the file of an artifact's model; of a bundle a copy, since LiteRT opens a file from
    its begin on."""
    path, section = model_section(folder)
    if section.begin == 0:
        return path
    copy = scratch / "model.tflite"
    with path.open("rb") as bundle, copy.open("wb") as file:
        done, size = 0, section.end - section.begin
        while done < size:
            sent = os.sendfile(file.fileno(), bundle.fileno(), section.begin + done, size - done)
            if not sent:
                raise WorkerError(f"{path.name} ends within its model")
            done += sent
    return copy
