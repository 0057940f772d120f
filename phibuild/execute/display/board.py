"""What is known of a build while it runs: what is over, what runs, its stage, the time it takes."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field, replace

from phibuild.execute.context import step_of
from phibuild.execute.forecast import Forecast, Left
from phibuild.units import format_duration

_AGAIN_SECONDS = 5.0
"""How long a forecast of what is left holds while nothing starts or ends."""


@dataclass(frozen=True)
class Running:
    """Something that runs: `since` by the monotonic clock; `fraction` of the stage that is done,
    None where that is not known; `expected` seconds in all; `told` are the failures in it that
    have been told of."""

    name: str
    stage: str
    since: float
    expected: float | None = None
    fraction: float | None = None
    told: tuple[str, ...] = ()

    def time(self, now: float) -> str:
        """Return how long it has run, and how long it is expected to."""
        so_far = format_duration(now - self.since)
        return f"{so_far} of about {format_duration(self.expected)}" if self.expected else so_far

    @property
    def percent(self) -> str:
        return "" if self.fraction is None else f"{self.fraction:.0%}".replace("%", " %")


@dataclass
class Board:
    """The state of a build; its methods can be called from any thread. Without a `forecast` nothing
    is known of the steps to come."""

    forecast: Forecast | None = None
    began: float = field(default_factory=time.monotonic)
    _running: dict[str, Running] = field(default_factory=dict)
    _over: set[str] = field(default_factory=set)
    _failed: set[str] = field(default_factory=set)
    _left: tuple[float, Left] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self, name: str, what: str) -> Running:
        seconds = self.forecast.seconds(step_of(name)) if self.forecast else None
        with self._lock:
            self._left = None
            self._running[name] = Running(name, what, time.monotonic(), seconds)
            return self._running[name]

    def stage(self, name: str, stage: str, fraction: float | None) -> None:
        share = None if fraction is None else min(max(fraction, 0.0), 1.0)
        with self._lock:
            if name in self._running:
                self._running[name] = replace(self._running[name], stage=stage, fraction=share)

    def tell(self, name: str, reason: str) -> None:
        """Note that a failure in something that runs has been told of."""
        with self._lock:
            if name in self._running:
                told = (*self._running[name].told, reason)
                self._running[name] = replace(self._running[name], told=told)

    def end(self, name: str, *, failed: bool) -> Running | None:
        """Note that something has ended; return what was known of it."""
        with self._lock:
            self._left = None
            if failed:
                self._failed.add(step_of(name))
            return self._running.pop(name, None)

    def over(self, step: str) -> None:
        with self._lock:
            self._left = None
            self._over.add(step)

    @property
    def running(self) -> list[Running]:
        """What runs, the longest first."""
        with self._lock:
            return list(self._running.values())

    @property
    def total(self) -> int:
        return len(self.forecast.tasks) if self.forecast else 0

    @property
    def done(self) -> int:
        """Steps of the plan of which nothing is left."""
        return len(self._over)

    @property
    def counts(self) -> str:
        """How many steps are over, of how many: "7 of 16 steps, 1 failed"."""
        failed = f", {len(self._failed)} failed" if self._failed else ""
        return f"{self.done} of {self.total} steps{failed}"

    def times(self, now: float) -> str:
        """Return how long the build has taken so far, and what is left as far as that is known."""
        so_far = f"{format_duration(now - self.began)} so far"
        left = self._find_left(now)
        if left is None or (left.unknown and not left.seconds):
            return so_far
        word = "at least" if left.unknown else "about"
        return f"{so_far}, {word} {format_duration(left.seconds)} left"

    def _find_left(self, now: float) -> Left | None:
        if self.forecast is None or self.total == self.done:
            return None
        with self._lock:
            if self._left is None or now - self._left[0] > _AGAIN_SECONDS:
                elapsed = {step_of(name): now - one.since for name, one in self._running.items()}
                self._left = now, self.forecast.left(elapsed, self._over)
            at, left = self._left
        return Left(max(left.seconds - (now - at), 0.0), left.unknown)
