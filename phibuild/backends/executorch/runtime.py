"""An artifact at work: ExecuTorch's runtime with XNNPACK, on the CPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from executorch.extension.pybindings import _C

from phibuild.backends.executorch.flatc import package
from phibuild.backends.executorch.inspect import MODEL, facts, read_program
from phibuild.backends.executorch.tokenizer import ProgramTokenizer
from phibuild.worker.generation import greedy
from phibuild.worker.interface import Logits, Tokens
from phibuild.worker.protocol import WorkerError

_FORWARD, _LOGITS = "forward", "logits"

# What `executorch.runtime` would import with all of the exporter: these register the kernels.
for _library in (
    "kernels/quantized/libquantized_ops_aot_lib.so",
    "extension/llm/custom_ops/libcustom_ops_aot_lib.so",
):
    torch.ops.load_library(str(package() / _library))


class ExecuTorchRuntime(ProgramTokenizer):
    """The program of an artifact folder with `threads` threads (0: as many as there are cores)."""

    def __init__(self, folder: Path, threads: int) -> None:
        if threads:
            _C._unsafe_reset_threadpool(threads)
        document, _ = read_program(folder / MODEL)
        said = facts(document)
        self._context, self._most = (
            said[name][0] for name in ("get_max_context_len", "get_max_seq_len")
        )
        super().__init__(folder)
        self._program = _C._load_program(str(folder / MODEL))
        self._name, self._method = _FORWARD, self._program.load_method(_FORWARD)
        self._length = 0

    def logits(self, ids: Tokens) -> Logits:
        """Return the logits [T, V] of `ids` [T] from an empty cache, in chunks."""
        self._use(_LOGITS)
        return self.extend(ids)

    def prefill(self, ids: Tokens) -> None:
        """Feed `ids` to an empty cache as a runner feeds a prompt: in chunks, of which the last
        token's logits come."""
        self._use(_FORWARD)
        for first in range(0, len(ids), self._most):
            self._run(ids[first : first + self._most])

    def extend(self, ids: Tokens) -> Logits:
        """Return the logits [T, V] of `ids` [T] appended to the cache that is there: in chunks if
        it is that of `logits`, one by one if it is that of a prompt."""
        size = self._most if self._name == _LOGITS else 1
        rows = [self._run(ids[first : first + size]) for first in range(0, len(ids), size)]
        return np.concatenate(rows)

    def _use(self, name: str) -> None:
        """Begin with an empty cache of a method. Each has weights and a cache of its own in memory:
        one is loaded at a time."""
        self._length = 0
        if name != self._name:
            self._method = None
            self._name, self._method = name, self._program.load_method(name)

    def _run(self, ids: Tokens) -> Logits:
        first = self._length
        self._length += len(ids)
        if self._length > self._context:
            raise WorkerError(
                f"the artifact's cache holds {self._context} tokens: give it a larger context"
            )
        inputs = [torch.from_numpy(np.ascontiguousarray(ids))[None], torch.tensor([first])]
        (logits,) = self._method.call(inputs)
        values: Logits = logits.numpy().reshape(-1, logits.shape[-1]).copy()
        return values

    def native(self) -> ExecuTorchRuntime:
        """Return itself: these are the CPU's own kernels."""
        return self

    def tokens(self, ids: Sequence[int], max_tokens: int) -> Iterator[int]:
        """Yield the greedy continuation of `ids` up to an id that ends generation."""
        return greedy(_Prompted(self), ids, max_tokens, self.stops())


class _Prompted:
    """A runtime whose prompts give the last token's logits alone."""

    def __init__(self, runtime: ExecuTorchRuntime) -> None:
        self._runtime = runtime
        self.extend, self.native = runtime.extend, runtime.native

    def logits(self, ids: Tokens) -> Logits:
        self._runtime.prefill(ids[:-1])
        return self._runtime.extend(ids[-1:])
