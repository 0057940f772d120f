"""How a build looks while it runs: live lines on a terminal, plain lines elsewhere."""

from __future__ import annotations

import threading
import time

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from phibuild.streams import complain


class PlainProgress:
    """One line when a step starts, one when it ends, one for a note; for logs and pipes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> PlainProgress:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def _say(self, text: str) -> None:
        with self._lock:
            complain(text)

    def started(self, step: str, what: str) -> None:
        self._say(f"{time.strftime('%H:%M:%S')} {step}: {what}")

    def stage(self, step: str, stage: str, fraction: float | None) -> None:
        pass  # a line for each stage would drown the others

    def noted(self, step: str, text: str) -> None:
        self._say(f"{time.strftime('%H:%M:%S')} {step}: {text}")

    def ended(self, step: str, failed: str | None, seconds: float) -> None:
        word = f"FAILED: {failed.splitlines()[0]}" if failed else "done"
        self._say(f"{time.strftime('%H:%M:%S')} {step}: {word} ({seconds:.1f} s)")


class LiveProgress:
    """A line with a bar for each running step; one kept line for each that has ended and each
    note."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.fields[step]}", style="bold"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> LiveProgress:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def started(self, step: str, what: str) -> None:
        self._tasks[step] = self._progress.add_task(what, total=None, step=step)

    def stage(self, step: str, stage: str, fraction: float | None) -> None:
        total = None if fraction is None else 1.0
        self._progress.update(
            self._tasks[step], description=stage, total=total, completed=fraction or 0.0
        )

    def noted(self, step: str, text: str) -> None:
        self._progress.console.print(f"[dim]{step}[/dim] {escape(text)}", highlight=False)

    def ended(self, step: str, failed: str | None, seconds: float) -> None:
        self._progress.remove_task(self._tasks.pop(step))
        mark = "[red]failed[/red]" if failed else "[green]done[/green]"
        self._progress.console.print(f"{mark} {step} [dim]{seconds:.1f} s[/dim]", highlight=False)


def make_progress(*, quiet: bool = False) -> PlainProgress | LiveProgress:
    """Return the display that suits standard error."""
    console = Console(stderr=True)
    if console.is_terminal and not quiet:
        return LiveProgress(console)
    return PlainProgress()
