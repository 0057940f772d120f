"""A build as lines of text: for logs, pipes and terminals that cannot do more; or without any."""

from __future__ import annotations

import threading
import time

from phibuild.execute.display.board import Board
from phibuild.execute.forecast import Forecast
from phibuild.streams import complain, printable
from phibuild.units import format_duration

SILENCE_SECONDS = 30.0
"""How long nothing is said while something runs, at most: CI systems end jobs that are silent."""


class PlainProgress:
    """A line when a step starts, one when it ends, one for each failure and note; when there has
    been none for `silence` seconds (None: SILENCE_SECONDS), one that says what runs."""

    def __init__(self, forecast: Forecast | None = None, silence: float | None = None) -> None:
        self._board = Board(forecast)
        self._silence = SILENCE_SECONDS if silence is None else silence
        self._said = time.monotonic()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._break_silence, daemon=True)

    def __enter__(self) -> PlainProgress:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _say(self, text: str) -> None:
        with self._lock:
            self._said = time.monotonic()
            complain(f"{time.strftime('%H:%M:%S')} {printable(text)}")

    def _break_silence(self) -> None:
        while True:
            quiet = time.monotonic() - self._said
            if quiet >= self._silence:
                if running := self._board.running:
                    now = time.monotonic()
                    steps = "; ".join(_running(one.name, one.time(now), one.stage, one.percent)
                                      for one in running)  # fmt: skip
                    self._say(f"{self._board.counts}, {self._board.times(now)}; running: {steps}")
                quiet = 0.0
            if self._ended.wait(self._silence - quiet):
                return

    def started(self, step: str, what: str) -> None:
        expected = self._board.start(step, what).expected
        self._say(f"{step}: {what}" + (f" (about {format_duration(expected)})" if expected else ""))

    def stage(self, step: str, stage: str, fraction: float | None) -> None:
        self._board.stage(step, stage, fraction)  # a line for each would drown the others

    def noted(self, step: str, text: str) -> None:
        self._say(f"{step}: {text}")

    def failed(self, step: str, reason: str) -> None:
        self._board.tell(step, reason)
        self._say(f"{step}: FAILED: {_first_line(reason)}")

    def ended(self, step: str, failed: str | None, seconds: float) -> None:
        known = self._board.end(step, failed=bool(failed))
        word = "done"
        if failed:
            told = known is not None and failed in known.told
            word = "failed" if told else f"FAILED: {_first_line(failed)}"
        self._say(f"{step}: {word} ({format_duration(seconds)})")

    def over(self, step: str) -> None:
        self._board.over(step)
        if self._board.total:
            self._say(f"{self._board.counts}, {self._board.times(time.monotonic())}")


class QuietProgress:
    """Says what fails, and nothing else."""

    def __init__(self) -> None:
        self._told: set[tuple[str, str]] = set()

    def __enter__(self) -> QuietProgress:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def started(self, step: str, what: str) -> None:
        pass

    def stage(self, step: str, stage: str, fraction: float | None) -> None:
        pass

    def noted(self, step: str, text: str) -> None:
        pass

    def failed(self, step: str, reason: str) -> None:
        self._told.add((step, reason))
        complain(f"{printable(step)}: FAILED: {printable(_first_line(reason))}")

    def ended(self, step: str, failed: str | None, seconds: float) -> None:
        if failed and (step, failed) not in self._told:
            self.failed(step, failed)

    def over(self, step: str) -> None:
        pass


def _running(name: str, time: str, stage: str, percent: str) -> str:
    doing = f"{stage} {percent}".strip()
    return f"{name} {time} ({doing})"


def _first_line(reason: str) -> str:
    return reason.strip().partition("\n")[0]
