"""Ctrl-C, SIGTERM and a lost terminal: once to stop gently and report, twice to stop at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

from phibuild.errors import EXIT_INTERRUPTED
from phibuild.execute.runner.process import Runners

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
_SHOW_CURSOR = b"\x1b[?25h"


def _say(text: str) -> None:
    os.write(2, f"{text}\n".encode())


@contextmanager
def stopped_gently(
    runners: Runners, signals: Sequence[str] = _SIGNALS, say: Callable[[str], None] = _say
) -> Iterator[threading.Event]:
    """Give the event that a first of the `signals` sets while the block runs; the runners are
    ended then. `say` is told so in a thread: what it writes to may be held by what the signal
    interrupts.

    A second one kills them and ends this process at once, without a report. In a thread that is
    not the main one signals cannot be had, and the event is never set.
    """
    stop = threading.Event()

    def tell() -> None:
        with suppress(OSError):  # the terminal is gone
            say("stopping: what runs is ended, then the report is written; once more stops at once")

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            runners.kill()
            if sys.stderr.isatty():
                os.write(2, _SHOW_CURSOR)
            os._exit(EXIT_INTERRUPTED)
        stop.set()
        # Runners get a grace period, and a terminal may be slow: the handler waits for neither.
        for work in (tell, runners.stop):
            threading.Thread(target=work, daemon=True).start()

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    # What is ignored stays ignored: nohup's SIGHUP, a background job's SIGINT.
    known = [getattr(signal, name) for name in signals if hasattr(signal, name)]
    heard = [number for number in known if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in heard}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
