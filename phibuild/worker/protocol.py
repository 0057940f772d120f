"""What a runner says while it works, and what it took. Standard library only.

Events: {"event": "stage", "item", "stage", "fraction"}, {"event": "item", "item", "result"},
{"event": "failed", "item", "error"}, and at the end {"event": "end", "cpu_seconds",
"loading_seconds"}; a worker that stops without "end" has crashed.
"""

from __future__ import annotations

import contextlib
import gc
import json
import re
import resource
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO, TypedDict


class Contents(TypedDict):
    """What the files of a finished artifact hold. `types` has the parameters of each kind, as in
    StoredTensor.kind; `weight_bytes` are those of all weights, their scales included."""

    types: dict[str, int]
    weight_bytes: int


@dataclass
class Loading:
    """CPU seconds of a block in which libraries were loaded, known at its end."""

    seconds: float = 0.0


class Report:
    """What a runner says while it works. An item is one variant or one artifact, by its key."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._started = time.monotonic()
        self._loading = 0.0

    def _send(self, **event: object) -> None:
        print(json.dumps(event), file=self._stream, flush=True)

    def stage(self, stage: str, fraction: float | None = None, item: str | None = None) -> None:
        """Say what is being done, and how much of it is done (0 to 1) where that is known."""
        self._send(event="stage", stage=stage, fraction=fraction, item=item)

    def item(self, item: str, result: Mapping[str, object]) -> None:
        """Say that an item is complete. `result` gets the seconds since the last item and the
        peak memory since then, unless it has its own."""
        now, complete = time.monotonic(), dict(result)
        complete.setdefault("seconds", now - self._started)
        complete.setdefault("peak_rss_bytes", peak_rss_bytes())
        reset_peak_rss()
        self._started = now
        self._send(event="item", item=item, result=complete)

    def failed(self, item: str, error: BaseException) -> None:
        """Say that an item failed, and why; the traceback goes to the log."""
        traceback.print_exception(error)
        reason = str(error).strip()
        if not isinstance(error, WorkerError):
            reason = f"{type(error).__name__}: {reason or 'no message'}"
        self._send(event="failed", item=item, error=reason)

    def text(self, text: str) -> None:
        """Pass on generated text."""
        self._send(event="text", text=text)

    @contextlib.contextmanager
    def loading(self, *, first: bool = True) -> Iterator[Loading]:
        """Count the CPU time of the block as spent on imports and the loading of libraries.

        The garbage collector would take a tenth of it, and of all that is done later, to look
        through what libraries are made of: it rests meanwhile, and leaves alone for good what is
        there in the end, unless work has begun, whose data are there too (`first` is false).
        """
        loading, before, collecting = Loading(), time.process_time(), gc.isenabled()
        gc.disable()
        try:
            yield loading
        finally:
            if first:
                gc.freeze()
            if collecting:
                gc.enable()
            loading.seconds = time.process_time() - before
            self._loading += loading.seconds

    def end(self) -> None:
        """Say that all is done, and what CPU time it took, children included, and how much of it
        went into loading."""
        usage = [
            resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        ]
        self._send(
            event="end",
            cpu_seconds=sum(one.ru_utime + one.ru_stime for one in usage),
            loading_seconds=self._loading,
        )


class WorkerError(Exception):
    """A failure whose message is written for the user."""


def peak_rss_bytes() -> int:
    """Return the largest resident memory of this process since `reset_peak_rss`, in bytes."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        if found:
            return int(found[1]) * 1024
    except OSError:
        pass  # not Linux
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset_peak_rss() -> None:
    """Start the peak anew, so that each item has its own (Linux; elsewhere it goes on rising)."""
    with contextlib.suppress(OSError):  # not Linux, or not allowed
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
