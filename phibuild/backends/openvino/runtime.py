"""An artifact at work: logits by the CPU plugin, text by openvino-genai."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from phibuild.backends.openvino.convert import MODEL_XML
from phibuild.evaluate.judge import Logits, Tokens

# The CPU plugin computes in bf16 where it can, keeps the KV cache in 8 bits and quantizes
# activations on the way: judged is what the artifact holds, so all three are turned off.
_EXACT = {
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
}


class OpenVinoRuntime:
    """The compiled model of an artifact folder on the CPU, with `threads` threads (0: all)."""

    def __init__(self, folder: Path, threads: int) -> None:
        self._folder = folder
        self._properties: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads} if threads else {}
        compiled = ov.Core().compile_model(
            folder / MODEL_XML, "CPU", {**_EXACT, **self._properties}
        )
        self._request = compiled.create_infer_request()
        self._length = 0

    def logits(self, ids: Tokens) -> Logits:
        """Return the logits [T, V] of one pass over `ids` [T] from an empty cache."""
        self._request.reset_state()
        self._length = 0
        return self.extend(ids)

    def extend(self, ids: Tokens) -> Logits:
        """Return the logits [T, V] of `ids` [T] appended to the cache that is there."""
        start, self._length = self._length, self._length + len(ids)
        result = self._request.infer(
            {
                "input_ids": ids[None],
                "attention_mask": np.ones((1, self._length), np.int64),
                "position_ids": np.arange(start, self._length, dtype=np.int64)[None],
                "beam_idx": np.zeros(1, np.int32),
            }
        )
        logits: NDArray[np.float32] = result["logits"][0]
        return logits.copy()  # the next call overwrites it

    def native(self) -> OpenVinoRuntime:
        """Return itself: these are the CPU plugin's own kernels."""
        return self

    def generate(self, prompt: str, max_tokens: int) -> Iterator[str]:
        """Yield pieces of greedy text after `prompt`, with openvino-genai's own defaults.

        Its LLMPipeline adds BOS where the tokenizer does and stops at the generation
        configuration's end-of-sequence ids.
        """
        import openvino_genai

        pipeline = openvino_genai.LLMPipeline(str(self._folder), "CPU", **self._properties)
        config = pipeline.get_generation_config()
        config.max_new_tokens = max_tokens
        config.do_sample = False
        config.apply_chat_template = False
        pieces: queue.Queue[str | BaseException | None] = queue.Queue()

        def run() -> None:
            try:
                pipeline.generate(prompt, config, pieces.put)
            except BaseException as error:
                pieces.put(error)
            else:
                pieces.put(None)

        threading.Thread(target=run, daemon=True).start()
        while (piece := pieces.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            yield piece
