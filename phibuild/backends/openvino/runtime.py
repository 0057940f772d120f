"""An artifact at work: logits by the CPU plugin, text by openvino-genai."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from phibuild.backends.openvino.inspect import CACHE_PRECISION, MODEL_XML
from phibuild.worker.chat import ChatFormat, read_format
from phibuild.worker.interface import Logits, Tokens

if TYPE_CHECKING:
    import openvino_genai

# The CPU plugin computes in bf16 where it can, keeps the KV cache in 8 bits and quantizes
# activations on the way: judged is what the artifact holds, so all three are turned off. A
# quantized cache that the IR asks for stays.
_EXACT: dict[str, int | str] = {
    "INFERENCE_PRECISION_HINT": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
}


class OpenVinoRuntime:
    """The compiled model of an artifact folder on the CPU, with `threads` threads (0: all)."""

    def __init__(self, folder: Path, threads: int) -> None:
        self._folder = folder
        self._properties: dict[str, int | str] = {}
        if threads:
            self._properties["INFERENCE_NUM_THREADS"] = threads
        core = ov.Core()
        model = core.read_model(folder / MODEL_XML)
        asked = list(CACHE_PRECISION)
        self._quantizes = model.has_rt_info(asked) and model.get_rt_info(asked).value == "u8"
        cache = {} if self._quantizes else {"KV_CACHE_PRECISION": "f32"}
        compiled = core.compile_model(model, "CPU", {**_EXACT, **cache, **self._properties})
        # With AMX the plugin computes in bf16, by a fused MLP that divides by half its threads: one
        # thread ends the process (https://github.com/openvinotoolkit/openvino/issues/28550).
        if compiled.get_property("INFERENCE_NUM_THREADS") == 1:
            self._properties["INFERENCE_PRECISION_HINT"] = _EXACT["INFERENCE_PRECISION_HINT"]
        self._request = compiled.create_infer_request()
        self._length = 0

    def logits(self, ids: Tokens) -> Logits:
        """Return the logits [T, V] of one pass over `ids` [T] from an empty cache; where that is
        quantized, as decoding has them: a pass that finds the cache empty attends to keys and
        values as they are, one that finds a token there reads its own from the cache, too."""
        self._request.reset_state()
        self._length = 0
        if not self._quantizes or len(ids) == 1:
            return self.extend(ids)
        return np.concatenate([self.extend(ids[:1]), self.extend(ids[1:])])

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

    def chat_format(self) -> ChatFormat:
        return read_format(self._folder)

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Return the ids of `text`; with `special` BOS is added where the tokenizer does so."""
        encoded = self._tokenizer.encode(text, add_special_tokens=special)
        return [int(token) for token in encoded.input_ids.data[0]]

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def byte_tokens(self) -> frozenset[int]:
        return frozenset()  # its detokenizer puts bytes together one by one

    @cached_property
    def _pipeline(self) -> openvino_genai.LLMPipeline:
        import openvino_genai

        return openvino_genai.LLMPipeline(str(self._folder), "CPU", **self._properties)

    @cached_property
    def _tokenizer(self) -> openvino_genai.Tokenizer:
        return self._pipeline.get_tokenizer()

    def tokens(self, ids: Sequence[int], max_tokens: int) -> Iterator[int]:
        """Yield tokens of openvino-genai's LLMPipeline after `ids`, greedily and otherwise with
        its own defaults, up to one of the generation configuration's end-of-sequence ids."""
        import openvino_genai

        config = self._pipeline.get_generation_config()
        config.max_new_tokens = max_tokens
        config.do_sample = False
        config.apply_chat_template = False
        ends = {config.eos_token_id, *config.stop_token_ids}
        made: queue.Queue[int | None] = queue.Queue()
        failures: list[BaseException] = []

        class Streamer(openvino_genai.StreamerBase):  # type: ignore[misc]
            def write(self, token: int | Sequence[int]) -> openvino_genai.StreamingStatus:
                for one in [token] if isinstance(token, int) else token:
                    made.put(one)
                return openvino_genai.StreamingStatus.RUNNING

            def end(self) -> None:
                pass

        def run() -> None:
            try:
                self._pipeline.generate(ov.Tensor(np.array([ids], np.int64)), config, Streamer())
            except BaseException as error:
                failures.append(error)
            made.put(None)

        threading.Thread(target=run, daemon=True).start()
        while (token := made.get()) is not None:
            if token not in ends:
                yield token
        if failures:
            raise failures[0]
