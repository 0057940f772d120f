"""Run a GGUF file with llama.cpp on the CPU: logits, cached decoding, tokens, text.

For judging, the KV cache is F32 and flash attention is off, so that what is compared with the
original is the weights: an F16 cache alone costs more than fp32 weights may differ. A file that is
made for a quantized cache gets it, with flash attention, without which llama.cpp quantizes no
values. A pass reads its own keys and values from the cache too, so that it shows what that loses.
"""

from __future__ import annotations

import ctypes
import functools
import sys
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from phibuild.backends.llamacpp import ggml, llama_api
from phibuild.backends.llamacpp.chat_keys import read_chat_keys
from phibuild.backends.llamacpp.layout import BLOCK_TYPES
from phibuild.backends.llamacpp.memory import PASS_TOKENS
from phibuild.backends.llamacpp.run_keys import cache_type, original_context
from phibuild.worker.chat import ChatFormat
from phibuild.worker.protocol import WorkerError

_errors: list[str] = []


def _log(level: int, text: bytes, _: object) -> None:
    """Pass on what llama.cpp warns of; the rest of its log is hundreds of lines per load."""
    message = text.decode("utf-8", "replace").strip()
    if level in (llama_api.LOG_LEVEL_WARN, llama_api.LOG_LEVEL_ERROR) and message:
        print(message, file=sys.stderr)
        if level == llama_api.LOG_LEVEL_ERROR:
            _errors.append(message)


_LOG_CALLBACK = llama_api.LOG_CALLBACK(_log)  # the library keeps no reference of its own


@functools.cache
def _engine() -> ctypes.CDLL:
    engine = ggml.library()
    llama_api.declare(engine)
    engine.llama_log_set(_LOG_CALLBACK, None)
    engine.llama_backend_init()
    return engine


class LlamaVocabulary:
    """The tokenizer of a GGUF file, without its weights."""

    def __init__(self, path: Path) -> None:
        """Load `path`. Raises WorkerError with llama.cpp's own words if it refuses."""
        self._api = _engine()
        params = self._api.llama_model_default_params()
        params.vocab_only = True
        self._model = _loaded(self._api, path, params)
        self._free_model = weakref.finalize(self, self._api.llama_model_free, self._model)
        self._vocab = self._api.llama_model_get_vocab(self._model)
        self._tokens: int = self._api.llama_vocab_n_tokens(self._vocab)

    def encode(self, text: str, *, around: bool) -> list[int]:
        """Return the ids of a text; `around`: with those that are added to it."""
        return _tokenize(self._api, self._vocab, text, around=around)

    def stops(self) -> list[int]:
        """Return the ids that end generation."""
        is_end = self._api.llama_vocab_is_eog
        return [token for token in range(self._tokens) if is_end(self._vocab, token)]

    def text(self, token: int) -> str:
        """Return the text of a token."""
        text: bytes = self._api.llama_vocab_get_text(self._vocab, token)
        return text.decode()


class LlamaRuntime:
    """A loaded GGUF file. The context grows with what is asked of it: llama.cpp takes the long
    rope factors for every context larger than the original one, so it is made no larger than the
    tokens need, and short prompts get the short factors as in Transformers."""

    def __init__(self, path: Path, threads: int) -> None:
        """Load `path`. Raises WorkerError with llama.cpp's own words if it refuses."""
        self._api = _engine()
        self._path = path
        self._threads = threads
        self._original_context = original_context(path)
        self._cache = cache_type(path)
        params = self._api.llama_model_default_params()
        params.n_gpu_layers = 0
        self._model = _loaded(self._api, path, params)
        self._free_model = weakref.finalize(self, self._api.llama_model_free, self._model)
        self._vocab = self._api.llama_model_get_vocab(self._model)
        self._vocab_size: int = self._api.llama_vocab_n_tokens(self._vocab)
        self._context: int | None = None
        self._capacity = 0
        self._seen: list[int] = []

    def logits(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the logits [T, V] of one pass over `ids` [T] from an empty cache."""
        self._seen = []
        if self._context is not None:
            self._api.llama_memory_clear(self._api.llama_get_memory(self._context), True)
        return self.extend(ids)

    def extend(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the logits [T, V] of `ids` [T] appended to the cache that is there."""
        new = [int(token) for token in ids]
        self._reserve(len(self._seen) + len(new))
        return self._decode(new)

    def native(self) -> LlamaRuntime:
        """Return itself: these are llama.cpp's own kernels."""
        return self

    def tokenize(self, text: str) -> list[int]:
        """Return the ids of `text`: special tokens in it are recognized, and those that the
        tokenizer adds by itself (BOS) are added."""
        return self.encode(text, special=True)

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Return the ids of `text`, as `tokenize` does; without `special` none are added."""
        return _tokenize(self._api, self._vocab, text, around=special)

    def chat_format(self) -> ChatFormat:
        return read_chat_keys(self._path)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, without the space that sentencepiece puts before a text."""
        text = b"".join(self._piece(token) for token in ids).decode("utf-8", "replace")
        if self._api.llama_vocab_type(self._vocab) == llama_api.VOCABULARY_SENTENCEPIECE:
            return text.removeprefix(" ")
        return text

    def byte_tokens(self) -> frozenset[int]:
        return frozenset()  # llama.cpp puts bytes together one by one

    def tokens(self, ids: Sequence[int], max_tokens: int) -> Iterator[int]:
        """Yield the greedy continuation of `ids` up to a token that ends generation."""
        self._seen = []
        self._release()
        self._reserve(len(ids) + max_tokens)
        rows = self._decode(list(ids))
        for number in range(max_tokens):
            token = int(rows[-1].argmax())
            if self._api.llama_vocab_is_eog(self._vocab, token):
                return
            yield token
            if number + 1 < max_tokens:
                rows = self._decode([token])

    def _piece(self, token: int) -> bytes:
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            count = self._api.llama_token_to_piece(self._vocab, token, buffer, size, 0, False)
            if count >= 0:
                return buffer.raw[:count]
            size = -count

    def _reserve(self, tokens: int) -> None:
        """Have a context for `tokens` tokens; a larger one takes over what is in the cache."""
        if tokens <= self._capacity:
            return
        capacity = -(-tokens // PASS_TOKENS) * PASS_TOKENS
        if tokens <= self._original_context < capacity:
            capacity = self._original_context
        self._release()
        params = self._api.llama_context_default_params()
        params.n_ctx = capacity
        params.n_batch = params.n_ubatch = PASS_TOKENS
        params.n_threads = params.n_threads_batch = self._threads
        params.flash_attn_type = llama_api.FLASH_ATTENTION_OFF
        params.type_k = params.type_v = llama_api.TYPE_F32
        if self._cache:
            params.flash_attn_type = llama_api.FLASH_ATTENTION_ON
            params.type_k = params.type_v = BLOCK_TYPES[self._cache.upper()].id
        params.offload_kqv = params.op_offload = False
        _errors.clear()
        self._context = self._api.llama_init_from_model(self._model, params)
        if not self._context:
            raise WorkerError(f"no context of {capacity} tokens: {_last_words()}")
        self._free_context = weakref.finalize(self, self._api.llama_free, self._context)
        self._capacity = self._api.llama_n_ctx(self._context)
        seen, self._seen = self._seen, []
        if seen:
            self._decode(seen)

    def _release(self) -> None:
        if self._context is not None:
            self._free_context()
            self._context, self._capacity = None, 0

    def _decode(self, ids: list[int]) -> NDArray[np.float32]:
        rows = np.empty((len(ids), self._vocab_size), np.float32)
        for start in range(0, len(ids), PASS_TOKENS):
            block = ids[start : start + PASS_TOKENS]
            count = len(block)
            batch = llama_api.Batch(n_tokens=count)
            batch.token = (ctypes.c_int32 * count)(*block)
            batch.logits = (ctypes.c_int8 * count)(*([1] * count))
            _errors.clear()
            status = self._api.llama_decode(self._context, batch)
            if status:
                raise WorkerError(f"llama.cpp could not decode ({status}): {_last_words()}")
            values = self._api.llama_get_logits(self._context)
            rows[start : start + count] = np.ctypeslib.as_array(values, (count, self._vocab_size))
        self._seen += ids
        return rows


def _tokenize(api: ctypes.CDLL, vocab: int, text: str, *, around: bool) -> list[int]:
    raw = text.encode()
    room = len(raw) + 2  # no token is shorter than a byte; BOS and EOS may be added
    out = (ctypes.c_int32 * room)()
    count = api.llama_tokenize(vocab, raw, len(raw), out, room, around, True)
    if count < 0:
        raise WorkerError(f"llama.cpp needs {-count} tokens for {len(raw)} bytes of text")
    return list(out[:count])


def _loaded(api: ctypes.CDLL, path: Path, params: llama_api.ModelParams) -> int:
    """Return the model of a file. Raises WorkerError with llama.cpp's own words if it refuses."""
    _errors.clear()
    model: int | None = api.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        raise WorkerError(f"llama.cpp cannot load {path.name}: {_last_words()}")
    return model


def _last_words() -> str:
    """Return what llama.cpp said last, for the message of an error."""
    return "; ".join(_errors[-3:]) or "it gives no reason"
