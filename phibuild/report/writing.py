"""Writing runs: `outputs/<recipe>/<timestamp>/` with report, artifacts and logs; `latest`.

A run counts as written once its report.json is there; until then its build holds the lock of a
mark in the folder, so that the next build knows the folders of those that were killed.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from phibuild.backends.registry import backend
from phibuild.errors import Problem, StoreError
from phibuild.execute.context import Result
from phibuild.planning.plan import Plan
from phibuild.report.data import artifact_folder
from phibuild.report.documents import Report
from phibuild.report.table import report_markdown
from phibuild.schema import document_text
from phibuild.store.manifest import StoredArtifact, require_intact
from phibuild.store.store import Store
from phibuild.system.files import link_tree, write_atomically
from phibuild.system.locks import held_if_free

_MARK = ".running"
"""A file in a run's folder that its build holds a lock on until the report is written."""
_LATEST = ".latest-"
_RUN_NAME = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d(-\d+)?")


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
            (folder / _MARK).unlink(missing_ok=True)


def _make_run(output: Path, name: str, stack: contextlib.ExitStack) -> Path:
    """Make a run's folder and put the lock of its mark on the stack."""
    base = output / name
    try:
        base.mkdir(parents=True, exist_ok=True)
        _sweep_runs(base)
        stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
        for number in range(1, 1000):
            folder = base / (stamp if number == 1 else f"{stamp}-{number}")
            # Another process may have the name, or have taken the folder for a leftover.
            with contextlib.suppress(FileExistsError, FileNotFoundError):
                folder.mkdir()
                if stack.enter_context(held_if_free(folder / _MARK)) is not None:
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


def _sweep_runs(base: Path) -> None:
    """Remove what killed builds have left: runs without a report, temporary files and links."""
    for path in sorted(base.iterdir()):
        if path.name.startswith(_LATEST):
            path.unlink(missing_ok=True)
        elif _RUN_NAME.fullmatch(path.name) and path.is_dir():
            with contextlib.suppress(OSError):  # it has files, or belongs to somebody else
                if not (path / _MARK).exists():
                    path.rmdir()
                    continue
                with held_if_free(path / _MARK) as fd:
                    if fd is not None:
                        _sweep_run(path)


def _sweep_run(folder: Path) -> None:
    """Remove a dead build's run if it has no report, and its temporary files if it has one."""
    finished = (folder / "report.json").exists()
    for child in sorted(folder.iterdir()):
        if child.name == _MARK or (finished and not child.name.startswith(".")):
            continue
        if child.is_dir():
            shutil.rmtree(child)
        else:
            child.unlink()
    (folder / _MARK).unlink()  # last: a sweep that is cut off can go on
    if not finished:
        folder.rmdir()


def write_run(
    folder: Path, plan: Plan, results: dict[str, Result], store: Store, report: Report
) -> None:
    """Link artifacts, write each cell's log, report.json and report.md, and move `latest` here."""
    for planned in plan.cells:
        log = folder / "logs" / f"{planned.cell.id}.log"
        if planned.artifact is None:
            continue
        result = results[planned.artifact.key]
        artifact = store.artifact(planned.artifact.key) if result.status != "failed" else None
        if artifact is not None:
            place = folder / artifact_folder(planned)
            copied = backend(planned.cell.backend).copied
            if not link_tree(artifact.folder, place, copied):
                require_intact(StoredArtifact(place, artifact.manifest))
        parts = [path.read_text("utf-8", "replace") for path in result.logs if path.exists()]
        said = f"{planned.cell.id}: {result.status}"
        if result.reason:
            said += f": {result.reason}"
        log.write_text("".join(parts) + said + "\n", encoding="utf-8")
    text = document_text(report) + "\n"
    write_atomically(folder / "report.md", report_markdown(report))
    write_atomically(folder / "report.json", text)  # last: with it the run counts as written
    _point_latest(folder)


def _point_latest(folder: Path) -> None:
    while True:
        temporary = folder.parent / f"{_LATEST}{secrets.token_hex(6)}"
        temporary.symlink_to(folder.name)
        with contextlib.suppress(FileNotFoundError):  # another build took it for a leftover
            os.replace(temporary, folder.parent / "latest")
            return
