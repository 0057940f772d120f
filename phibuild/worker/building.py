"""The frame of every build: what is common is done once, what fails one artifact is its own.

Standard library only; each backend's `build` hands its `Builder` to `build_all`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from phibuild.worker.architecture import Architecture
from phibuild.worker.costs import Costs, Output
from phibuild.worker.protocol import Contents, Report, WorkerError, peak_rss_bytes
from phibuild.worker.requests import BuildRequest
from phibuild.worker.tokenizer_check import Facts, TokenizerCheck, read_facts

Kept = TypeVar("Kept")
Check = Callable[[Path, Facts], TokenizerCheck]
"""Compares the tokenizer in an artifact's folder with the source's (tokenizer_check.py)."""


class Builder(Protocol[Kept]):
    """How a backend writes artifacts. What it raises for one output fails that one; what `prepare`
    and `convert` raise fails all that are not reported yet."""

    def prepare(self, build: Build[Kept]) -> None:
        """Do once what all outputs need."""

    def open(self, build: Build[Kept], output: Output) -> Kept:
        """Begin an artifact: room for its weights, the files beside them; return what is kept of
        it while it is written."""

    def convert(self, build: Build[Kept], outputs: Sequence[tuple[Output, Kept]]) -> None:
        """Write the weights of all outputs, most likely in one pass (passes.py). One that was made
        by itself may be completed by `build.complete`."""

    def close(self, kept: Kept) -> None:
        """Wait until all is written, and close the files; also those of an output that failed."""

    def checker(self) -> Check:
        """Import and return what checks the tokenizer; all artifacts of a request have the same."""

    def inspect(self, folder: Path) -> Contents:
        """Return what the finished files hold."""


class Build(Generic[Kept]):
    """One request while it is worked at."""

    def __init__(self, request: BuildRequest, report: Report, builder: Builder[Kept]) -> None:
        self.report = report
        self.source = Path(request["source"])
        self.arch = Architecture.from_json(request["architecture"])
        self.model = request["model"]
        self.threads = request["threads"]
        self.costs = Costs()
        self.outputs = [Output(item) for item in request["items"]]
        self.facts: Facts
        self._facts = Path(request["facts"])
        self._builder = builder
        self._check: Check | None = None
        self._checked: TokenizerCheck | None = None
        self._reported: set[str] = set()

    def run(self) -> None:
        """Make and report all artifacts."""
        opened: list[tuple[Output, Kept]] = []
        try:
            self.facts = read_facts(self._facts)
            self._builder.prepare(self)
            for output in self.outputs:
                with self.costs.alone(output):
                    opened.append((output, self._builder.open(self, output)))
            if self.left():
                self._builder.convert(self, opened)
        except Exception as error:  # of the checkpoint or its tokenizer: no artifact's own
            for output in self.outputs:
                output.error = output.error or error
        for output, kept in opened:
            with self.costs.alone(output):
                self._builder.close(kept)
        for output in self.outputs:
            self.complete(output)

    def left(self) -> bool:
        """Return whether there is an output that has not failed."""
        return any(output.error is None for output in self.outputs)

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Count the block as loading: it is no artifact's, nor common to them."""
        try:
            with self.report.loading(first=False) as loading:
                yield
        finally:
            self.costs.apart(loading.seconds)

    def complete(self, output: Output) -> None:
        """Check and report an artifact whose files are whole, or why there is none; once."""
        if output.item in self._reported:
            return
        self._reported.add(output.item)
        if output.error is None:
            self._check_tokenizer(output)
        result: dict[str, object] = {}
        if output.error is None:
            with self.costs.alone(output):
                result |= self._builder.inspect(output.folder)
        if output.error is not None:
            _empty(output.folder)  # the others may need the room
            self.report.failed(output.item, _reason(output.error))
            return
        shared = self.costs.common() / len(self.outputs)
        result |= {
            "tokenizer": self._checked,
            "seconds": output.seconds + shared,
            "own_seconds": output.seconds,
            "shared_seconds": shared,
            "peak_rss_bytes": peak_rss_bytes(),  # of all that are made together
        }
        self.report.item(output.item, result)

    def _check_tokenizer(self, output: Output) -> None:
        if self._checked is not None:
            return
        try:
            if self._check is None:
                with self.loading():
                    self._check = self._builder.checker()
            self.report.stage("checking the tokenizer", item=output.item)
            self._checked = self._check(output.folder, self.facts)
        except Exception as error:
            output.error = error


def build_all(request: BuildRequest, report: Report, load: Callable[[], Builder[Kept]]) -> None:
    """Write, check and report every item of a request; one that fails does not stop the others.
    `load` imports what building takes and returns the builder."""
    try:
        with report.loading():
            builder = load()
    except Exception as error:  # a library that is not there or does not run here
        for item in request["items"]:
            report.failed(item["item"], error)
        return
    Build(request, report, builder).run()


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _reason(error: Exception) -> Exception:
    """Return an error in words for the user, where its type says what went wrong."""
    if isinstance(error, OSError) and error.strerror:
        place = f"{Path(error.filename).name}: " if error.filename else ""
        return WorkerError(f"{place}{error.strerror}").with_traceback(error.__traceback__)
    return error
