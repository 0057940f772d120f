"""Writing runs: `outputs/<recipe>/<timestamp>/` with report, artifacts and logs; `latest`.

A run counts as written once its report.json is there; until then its build holds the lock of a
mark in the folder, so that the next build knows the folders of those that were killed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from phibuild.backends.registry import backend
from phibuild.errors import Problem, StoreError
from phibuild.execute.context import Result
from phibuild.planning.plan import Plan
from phibuild.report.before import report_before
from phibuild.report.data import artifact_folder
from phibuild.report.documents import Report
from phibuild.report.markdown import report_page
from phibuild.report.run_folders import LATEST_LINK, MARK, STAMP, sweep_runs
from phibuild.schema import document_text
from phibuild.store.manifest import StoredArtifact, require_intact
from phibuild.store.store import Store
from phibuild.system.files import link_tree, write_atomically
from phibuild.system.locks import held_if_free


def check_output(output: Path) -> None:
    """Raise StoreError if runs could not be written below `output`; leaves nothing behind."""
    folder = output
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise StoreError(
            Problem(
                "the output folder cannot be written", str(output), "choose another: --output DIR"
            )
        )


@contextlib.contextmanager
def new_run(output: Path, name: str) -> Iterator[Path]:
    """Give the folder of a new run, with its logs folder; names sort by time. Those that killed
    builds left without a report are removed."""
    with contextlib.ExitStack() as stack:
        folder = _make_run(output, name, stack)
        yield folder
        if (folder / "report.json").exists():
            (folder / MARK).unlink(missing_ok=True)


def _make_run(output: Path, name: str, stack: contextlib.ExitStack) -> Path:
    """Make a run's folder and put the lock of its mark on the stack."""
    base = output / name
    try:
        base.mkdir(parents=True, exist_ok=True)
        sweep_runs(base)
        stamp = time.strftime(STAMP)
        for number in range(1, 1000):
            folder = base / (stamp if number == 1 else f"{stamp}-{number}")
            # Another process may have the name, or have taken the folder for a leftover.
            with contextlib.suppress(FileExistsError, FileNotFoundError):
                folder.mkdir()
                if stack.enter_context(held_if_free(folder / MARK)) is not None:
                    (folder / "logs").mkdir()
                    return folder
    except OSError as error:
        raise StoreError(
            Problem(
                f"the output folder cannot be written: {error.strerror}",
                str(output),
                "choose another: --output DIR",
            )
        ) from error
    raise StoreError(Problem("too many runs in one second", str(base)))


def write_run(
    folder: Path, plan: Plan, results: dict[str, Result], store: Store, report: Report
) -> None:
    """Link artifacts, write each cell's log, report.json, report.md and
    report.html, and move `latest` here."""
    copies: dict[str, Path] = {}
    for planned in plan.cells:
        log = folder / "logs" / f"{planned.cell.id}.log"
        if planned.artifact is None:
            continue
        result = results[planned.artifact.key]
        artifact = store.artifact(planned.artifact.key) if result.status != "failed" else None
        if artifact is not None:
            copied = backend(planned.cell.backend).copied
            _place(artifact, folder / artifact_folder(planned), copied, copies)
        parts = [path.read_text("utf-8", "replace") for path in result.logs if path.exists()]
        said = f"{planned.cell.id}: {result.status}"
        if result.reason:
            said += f": {result.reason}"
        log.write_text("".join(parts) + said + "\n", encoding="utf-8")
    from phibuild.report.html.page import PAGE, report_html  # heavy

    text = document_text(report) + "\n"
    write_atomically(folder / "report.md", report_page(report, report_before(folder)))
    write_atomically(folder / "report.json", text)  # with it the run counts as written
    _point_latest(folder)
    write_atomically(folder / PAGE, report_html(report, folder))


def _place(
    artifact: StoredArtifact, place: Path, copied: Sequence[str], copies: dict[str, Path]
) -> None:
    """Link an artifact's files into a cell's folder. Where some have to be copied, one folder of
    the run has the copies (`copies`, by the artifact's digest), and those of other cells are
    symbolic links to it."""
    if (first := copies.get(artifact.digest)) and _linked_folder(first, place):
        return
    if not link_tree(artifact.folder, place, copied):
        require_intact(StoredArtifact(place, artifact.manifest))
        copies[artifact.digest] = place


def _linked_folder(folder: Path, place: Path) -> bool:
    """Make a symbolic link that holds wherever the run is moved; False where there are none."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(os.path.relpath(folder, place.parent), target_is_directory=True)
    except (OSError, NotImplementedError):
        return False
    return True


def _point_latest(folder: Path) -> None:
    while True:
        temporary = folder.parent / f"{LATEST_LINK}{secrets.token_hex(6)}"
        temporary.symlink_to(folder.name)
        with contextlib.suppress(FileNotFoundError):  # another build took it for a leftover
            os.replace(temporary, folder.parent / "latest")
            return
