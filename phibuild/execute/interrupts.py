"""Ctrl-C, SIGTERM and a lost terminal: once to stop gently and report, twice to stop at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

from phibuild.errors import EXIT_INTERRUPTED
from phibuild.execute.runner.process import Runners

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
_SHOW_CURSOR = b"\x1b[?25h"


@contextmanager
def stopped_gently(
    runners: Runners, signals: Sequence[str] = _SIGNALS
) -> Iterator[threading.Event]:
    """Give the event that a first of the `signals` sets while the block runs; the runners are
    ended then.

    A second one kills them and ends this process at once, without a report. In a thread that is
    not the main one signals cannot be had, and the event is never set.
    """
    stop = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            runners.kill()
            if sys.stderr.isatty():
                os.write(2, _SHOW_CURSOR)
            os._exit(EXIT_INTERRUPTED)
        stop.set()
        _say("stopping: what runs is ended, then the report is written; once more stops at once\n")
        # Runners get a grace period; the handler must not wait for it.
        threading.Thread(target=runners.stop, daemon=True).start()

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


def _say(text: str) -> None:
    with suppress(OSError):  # the terminal is gone
        os.write(2, text.encode())
