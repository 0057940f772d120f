"""A build on a terminal: what runs is drawn anew several times a second, below what has ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from phibuild.execute.display.board import Board, Running
from phibuild.execute.forecast import Forecast
from phibuild.streams import printable
from phibuild.system.screen import WIDTH
from phibuild.units import format_duration

_BAR, _NARROW_BAR = 30, 10
_ROOMY = 70
"""Columns from which on there is room for a long bar, and for words beside it."""


class LiveProgress:
    """The whole of the build in a line with a bar, two lines for each step that runs; a line that
    stays for each that has ended, each failure and each note."""

    def __init__(self, console: Console, forecast: Forecast | None = None) -> None:
        self._console = console
        self._board = Board(forecast)
        self._live = Live(
            Screen(self._board), console=console, refresh_per_second=4, transient=True,
            redirect_stdout=False, vertical_overflow="crop",
        )  # fmt: skip

    def __enter__(self) -> LiveProgress:
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(OSError):  # the terminal is gone
            self._live.stop()

    def _print(self, word: str, style: str, text: str, after: str = "") -> None:
        line = Text()
        if word:
            line.append(word, style).append(" ")
        with suppress(OSError):  # the terminal is gone; the build goes on
            self._live.console.print(line.append(printable(text)).append(after, "dim"))

    def started(self, step: str, what: str) -> None:
        self._board.start(step, what)

    def stage(self, step: str, stage: str, fraction: float | None) -> None:
        self._board.stage(step, stage, fraction)

    def noted(self, step: str, text: str) -> None:
        self._print("", "", f"{step}: {text}")

    def failed(self, step: str, reason: str) -> None:
        self._board.tell(step, reason)
        self._print("FAILED", "bold red", f"{step}: {_first_line(reason)}")

    def ended(self, step: str, failed: str | None, seconds: float) -> None:
        known = self._board.end(step, failed=bool(failed))
        took = f" {format_duration(seconds)}"
        if failed is None:
            self._print("done", "green", step, took)
        elif known and failed in known.told:
            self._print("failed", "red", step, took)
        else:
            self._print("FAILED", "bold red", f"{step}: {_first_line(failed)}", took)

    def over(self, step: str) -> None:
        self._board.over(step)


class Screen:
    """What is drawn of a build at a moment, within the console's columns and rows; `clock` says
    when that is."""

    def __init__(self, board: Board, clock: Callable[[], float] = time.monotonic) -> None:
        self._board, self._clock = board, clock

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        now, running = self._clock(), self._board.running
        width = min(options.max_width, WIDTH)
        if self._board.total:
            yield from self._whole(width, now)
        # Each takes two rows; what is drawn above must stay in sight.
        room = max((console.size.height - 4) // 2, 1)
        for one in running[:room]:
            yield from _step(one, width, now)
        if running[room:]:
            yield Text(f"and {len(running) - room} more steps", "dim")

    def _whole(self, width: int, now: float) -> Iterator[RenderableType]:
        done, total = self._board.done, self._board.total
        counts, times = Text(self._board.counts, "bold"), Text(self._board.times(now))
        bar = ProgressBar(total, done, _BAR if width >= _ROOMY else _NARROW_BAR)
        both = counts.cell_len + (bar.width or 0) + 2
        if both + times.cell_len + 2 <= width:
            yield _row(width, counts, bar, times)
            return
        if both <= width:
            yield _row(width, counts, bar)
        else:
            yield counts
        yield times


def _step(one: Running, width: int, now: float) -> Iterator[RenderableType]:
    """Yield the two lines of a step: its name and its time; its stage, and how much of it is
    done."""
    took = Text(one.time(now))
    name = Text(printable(one.name))
    if width - took.cell_len < 20:
        took = Text(format_duration(now - one.since))
    name.truncate(max(width - took.cell_len - 4, 1), overflow="ellipsis")
    yield _row(width, Text("  ").append_text(name), took)
    percent = Text(f"{one.percent:>5}" if one.percent else "", "cyan")
    long = _BAR if width >= _ROOMY else _NARROW_BAR
    bar = ProgressBar(1.0, one.fraction, long) if one.fraction is not None else Text("")
    taken = percent.cell_len + (long + 2 if one.percent else 0)
    stage = Text(printable(one.stage))
    stage.truncate(max(width - taken - 7, 1), overflow="ellipsis")
    yield _row(width, Text("    ").append_text(stage), bar, percent)


def _row(width: int, first: Text, *others: RenderableType) -> Table:
    """Return a line: `first` at its left end, the others at its right."""
    grid = Table.grid(padding=(0, 1), pad_edge=False)
    grid.width = width
    grid.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    for _ in others:
        grid.add_column(justify="right", no_wrap=True)
    grid.add_row(first, *others)
    return grid


def _first_line(reason: str) -> str:
    return reason.strip().partition("\n")[0]
