"""What each of several outputs that are made together costs. Standard library only.

An output is charged the CPU time of its own work and an equal share of what is common to all:
reading the checkpoint, converting the tokenizer, checking it. Imports and the loading of libraries
are apart (`Report.loading`): they are the runner's, however many outputs it makes. What a library
does in threads of its own while several outputs are written counts as common.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from phibuild.worker.requests import BuildItem


@dataclass
class Output:
    """One artifact while it is made: `error` is the first that it met, after which no more work is
    done for it, `seconds` the CPU time of its own work."""

    request: BuildItem
    error: Exception | None = None
    seconds: float = 0.0

    @property
    def item(self) -> str:
        return self.request["item"]

    @property
    def folder(self) -> Path:
        return Path(self.request["output"])


@dataclass
class Costs:
    """Charges work to outputs, and keeps what goes wrong in it to them. `started` is the process's
    CPU time when work began, of which none is to be charged before."""

    started: float = field(default_factory=time.process_time)
    _own: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def of(self, *outputs: Output) -> Iterator[None]:
        """Charge the block, on one of several threads, to these outputs, in equal parts; what is
        raised there is theirs alone."""
        with self._charged(time.thread_time, outputs):
            yield

    @contextmanager
    def alone(self, output: Output) -> Iterator[None]:
        """Charge the block to one output with all threads that work meanwhile: nothing else may."""
        with self._charged(time.process_time, (output,)):
            yield

    @contextmanager
    def _charged(self, clock: Callable[[], float], outputs: Sequence[Output]) -> Iterator[None]:
        before = clock()
        try:
            yield
        except Exception as error:  # whatever a library raises, the others go on
            for output in outputs:
                output.error = output.error or error
        finally:
            spent = clock() - before
            with self._lock:
                self._own += spent
                for output in outputs:
                    output.seconds += spent / len(outputs)

    def apart(self, seconds: float) -> None:
        """Leave CPU time out of what is common."""
        with self._lock:
            self._own += seconds

    def common(self) -> float:
        """Return the CPU time so far that is no output's own."""
        return max(0.0, time.process_time() - self.started - self._own)
