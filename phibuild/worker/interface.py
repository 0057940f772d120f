"""What the worker of a backend is: `backends/<name>/worker.py` satisfies `Worker`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from phibuild.worker.chat import ChatFormat
from phibuild.worker.protocol import Contents, Report
from phibuild.worker.requests import BuildRequest

Logits = NDArray[np.float32]
Tokens = NDArray[np.int64]


class Runtime(Protocol):
    """A loaded artifact, to be judged."""

    def logits(self, ids: Tokens) -> Logits:
        """Return the logits [T, V] of one pass over `ids` [T] from an empty cache."""

    def extend(self, ids: Tokens) -> Logits:
        """Return the logits [T, V] of `ids` [T] appended to the cache that is there."""

    def native(self) -> Native:
        """Return the runtime whose speed counts, and which generates: itself, unless `logits` are
        those of the artifact's weights computed another way because the runtime's own kernels are
        too slow to judge by."""


@runtime_checkable
class Prefilling(Protocol):
    """A runtime that takes a prompt another way than its logits come from."""

    def prefill(self, ids: Tokens) -> None:
        """Feed `ids` [T] to an empty cache, as the runtime takes a prompt: without logits."""


class Speaker(Protocol):
    """A loaded artifact that generates."""

    def chat_format(self) -> ChatFormat:
        """Return the artifact's chat templates."""

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Return the ids of `text`, in which special tokens are recognized. With `special`, those
        that the tokenizer puts around a text by itself (BOS) are added."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids` without special tokens."""

    def byte_tokens(self) -> frozenset[int]:
        """Return the tokens whose text depends on the byte tokens after them; see `TextStream`."""

    def tokens(self, ids: Sequence[int], max_tokens: int) -> Iterator[int]:
        """Yield the tokens that follow `ids`, greedily, up to the first that ends generation,
        which is not among them, or `max_tokens`."""


class Native(Runtime, Speaker, Protocol):
    """The artifact in its own runtime."""


class Worker(Protocol):
    """The functions of a worker module, all of which run in the backend's toolchain. Each imports
    what it needs itself: what it can import is in the key of what it makes."""

    REFERENCE: str
    """"logits", or "logits_long" for a runtime that always uses the long rope factors."""

    def build(self, request: BuildRequest, report: Report) -> None:
        """Write, check and report each artifact of a request; one that fails does not stop the
        others: `phibuild.worker.building.build_all`."""

    def inspect(self, folder: Path) -> Contents:
        """Return what a finished artifact holds, read back from its files."""

    def prepare(self) -> None:
        """Import what `load` needs, so that the time of loading is the artifact's alone."""

    def load(self, folder: Path, threads: int) -> Runtime:
        """Load an artifact with so many threads."""
