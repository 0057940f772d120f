"""An artifact's graphs one after the other, as onnxruntime-genai runs them by genai_config.json."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from phibuild.backends.qnn.genai import CONFIG, PHASES
from phibuild.backends.qnn.names import IDS, LAST, LOGITS, PASTS, PRESENTS, TOTAL
from phibuild.worker.companions import read_json
from phibuild.worker.interface import Logits, Tokens
from phibuild.worker.json_values import JsonDict
from phibuild.worker.protocol import WorkerError

Open = Callable[[Path], ort.InferenceSession]
"""Opens a graph."""
_FILLING = 0
"""The id behind the end of a prompt, whose place is written anew before it is read."""
Values = dict[str, NDArray[np.generic]]


class Pipeline:
    """A loaded artifact with its cache."""

    def __init__(self, folder: Path, load: Open) -> None:
        model = read_json(folder / CONFIG)["model"]
        decoder = model["decoder"]
        self.context: int = model["context_length"]
        self._stages: list[tuple[JsonDict, ort.InferenceSession]] = []
        for entry in decoder["pipeline"]:
            (stage,) = entry.values()
            self._stages.append((stage, load(folder / stage["filename"])))
        shape = (
            1,
            decoder["num_key_value_heads"],
            self.context,
            decoder["head_size"],
        )
        layers = range(decoder["num_hidden_layers"])
        self._cache: Values = {
            name % layer: np.zeros(shape, np.float16) for layer in layers for name in PASTS
        }
        self._renamed = {
            present % layer: past % layer
            for layer in layers
            for past, present in zip(PASTS, PRESENTS, strict=True)
        }
        self.length = 0

    def clear(self) -> None:
        """Forget all tokens."""
        self.length = 0

    def feed(self, ids: Tokens) -> Iterator[Logits]:
        """Yield the logits [n, V] of `ids` appended to the cache, window by window; a single id
        goes through the graphs of a token. Raises WorkerError if there is no room."""
        if self.length + len(ids) > self.context:
            raise WorkerError(
                f"the artifact is made for {self.context} tokens: give it a larger context"
            )
        phase = "token" if len(ids) == 1 else "prompt"
        window = PHASES[phase]
        for first in range(0, len(ids), window):
            part = ids[first : first + window]
            filled = np.full(window, _FILLING, np.int32)
            filled[: len(part)] = part
            values: Values = {
                IDS: filled[None],
                LAST: np.array([[self.length + window - 1]], np.int32),
                TOTAL: np.array([self.context], np.int32),
            }
            yield self._run(phase, values)[: len(part)]
            self.length += len(part)

    def _run(self, phase: str, values: Values) -> Logits:
        for stage, session in self._stages:
            if not stage.get("run_on_prompt" if phase == "prompt" else "run_on_token_gen", True):
                continue
            inputs = {
                name: self._cache[name] if name in self._cache else values[name]
                for name in stage["inputs"]
            }
            if any(name in self._renamed for name in stage["outputs"]):
                self._write(session, inputs)
                continue
            found = session.run(stage["outputs"], inputs)
            values |= dict(zip(stage["outputs"], found, strict=True))
        logits: Logits = values[LOGITS][0].astype(np.float32)
        return logits

    def _write(self, session: ort.InferenceSession, inputs: Values) -> None:
        """Have the cache written where it is: one buffer for old and new."""
        binding = session.io_binding()
        for name, array in inputs.items():
            binding.bind_cpu_input(name, array)
        for present, past in self._renamed.items():
            cache = self._cache[past]
            binding.bind_output(present, "cpu", 0, np.float16, cache.shape, cache.ctypes.data)
        session.run_with_iobinding(binding)
