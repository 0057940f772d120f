"""An artifact at work: Core AI's runtime, on the CPU, in float32."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from phibuild.backends.coreai.decoder import KEYS, VALUES
from phibuild.backends.coreai.metadata import BUNDLE, FUNCTION, MODEL
from phibuild.backends.coreai.program import Program
from phibuild.backends.coreai.tokenizer import BundleTokenizer
from phibuild.worker.architecture import read_architecture
from phibuild.worker.companions import read_json
from phibuild.worker.generation import greedy
from phibuild.worker.interface import Logits, Tokens
from phibuild.worker.protocol import WorkerError

_CHUNK = _ROOM = 256
"""Tokens of a call, since the scores of more would take much memory; and by how many the states
grow."""


class CoreAiRuntime(BundleTokenizer):
    """The model of an artifact folder. Its runtime chooses its threads."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        arch = read_architecture(read_json(folder / "config.json"))
        self._context: int = read_json(folder / BUNDLE)["language"]["max_context_length"]
        self._program = Program(folder / MODEL, FUNCTION)
        self._arch = arch
        self._clear()

    def logits(self, ids: Tokens) -> Logits:
        """Return the logits [T, V] of `ids` [T] from empty states."""
        self._clear()
        return self.extend(ids)

    def extend(self, ids: Tokens) -> Logits:
        """Return the logits [T, V] of `ids` [T] appended to the states that are there."""
        parts = [self._run(ids[first : first + _CHUNK]) for first in range(0, len(ids), _CHUNK)]
        return np.concatenate(parts)

    def _clear(self) -> None:
        self._length = 0
        self._states = self._program.states({name: self._zeros(_ROOM) for name in (KEYS, VALUES)})

    def _zeros(self, room: int) -> NDArray[np.float32]:
        arch = self._arch
        return np.zeros((arch.layers, 1, arch.kv_heads, room, arch.head_dim), np.float32)

    def _make_room(self) -> None:
        """Let the states hold all tokens: a call copies them whole."""
        room = -(-self._length // _ROOM) * _ROOM
        for name, state in self._states.items():
            kept = state.numpy()
            if kept.shape[3] < room:
                wide = self._zeros(room)
                wide[:, :, :, : kept.shape[3]] = kept
                self._states |= self._program.states({name: wide})

    def _run(self, ids: Tokens) -> Logits:
        self._length += len(ids)
        if self._length > self._context:
            raise WorkerError(
                f"the artifact is made for {self._context} tokens: give it a larger context"
            )
        self._make_room()
        inputs = {
            "input_ids": ids.astype(np.int32)[None],
            "position_ids": np.arange(self._length, dtype=np.int32)[None],
        }
        logits: Logits = self._program.run(inputs, self._states)["logits"][0]
        return logits

    def native(self) -> CoreAiRuntime:
        """Return itself: fp16 as it is takes a thousand times as long on a CPU."""
        return self

    def tokens(self, ids: Sequence[int], max_tokens: int) -> Iterator[int]:
        """Yield the greedy continuation of `ids` up to an id that ends generation."""
        return greedy(self, ids, max_tokens, self.stops())
