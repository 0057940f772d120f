"""Every error a user can meet: what is wrong, where, what to do, and the exit code it ends with."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

EXIT_OK = 0
EXIT_CELL_FAILED = 1
EXIT_USAGE = 2
EXIT_GATE_FAILED = 3
EXIT_INTERRUPTED = 130


class Place(str):
    """file:line, as problems show it, with the column for whoever wants it; both from 1."""

    __slots__ = ("column", "file", "line")
    file: str
    line: int
    column: int

    def __new__(cls, file: str, line: int, column: int) -> Place:
        place = super().__new__(cls, f"{file}:{line}")
        place.file, place.line, place.column = file, line, column
        return place

    def __getnewargs__(self) -> tuple[str, int, int]:  # type: ignore[override]
        return self.file, self.line, self.column  # pickled into a cluster's jobs


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: `what`, `where` (a Place or a command-line word), `remedy`."""

    what: str
    where: str | None = None
    remedy: str | None = None

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}\n    {self.remedy}" if self.remedy else text


class PhibuildError(Exception):
    """An error to be shown to the user as it is, without a traceback."""

    exit_code = EXIT_USAGE

    def __init__(self, *problems: Problem) -> None:
        self.problems = problems
        super().__init__("\n".join(str(problem) for problem in problems))


class ConfigError(PhibuildError):
    """The command line, a recipe or a configuration file is wrong."""


class SourceError(PhibuildError):
    """The checkpoint cannot be used: missing, incomplete, damaged or not a supported Phi."""


class BackendError(PhibuildError):
    """A backend's package is not what one has to be."""


class ToolchainError(PhibuildError):
    """A backend's environment could not be made or is damaged."""

    exit_code = EXIT_CELL_FAILED


class StoreError(PhibuildError):
    """The store or an output folder cannot be read or written."""


def suggest(word: str, known: Iterable[str]) -> str:
    """Return "did you mean 'x'?" for the nearest known word, or the list of all known ones."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"known: {', '.join(names)}" if names else ""
