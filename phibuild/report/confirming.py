"""A build that made nothing new: the latest run is confirmed, and no other is written.

Nothing is new if the run's report would say what the latest one says of everything that lasts: the
recipe as composed, the sources' digests, every cell with its options, artifact, figures, gates and
notes, and the reason of whatever failed. Then `confirmed.json` beside it says when and by what.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from phibuild.errors import ConfigError
from phibuild.report.documents import Confirmation, Report, ReportCell
from phibuild.report.run_folders import CONFIRMED, MARK, latest_run, read_confirmation
from phibuild.report.runs import read_report
from phibuild.schema import document_text
from phibuild.store.manifest import check_artifact, damage, read_artifact
from phibuild.store.store import ARTIFACTS, Store
from phibuild.system.files import write_atomically
from phibuild.system.locks import held


def confirm_latest(base: Path, report: Report, store: Store, *, thorough: bool) -> Path | None:
    """Note in the latest run below `base`, a recipe's folder, that a build found nothing new, and
    return its folder; None if something is new, or the run is not whole. Artifacts are looked at as
    the store looks at its own, and hashed if `thorough`, but for files that are the store's."""
    if report.totals.interrupted or any(cell.status == "built" for cell in report.cells):
        return None
    with contextlib.suppress(OSError), _latest_held(base) as folder:
        if folder is not None and _says_the_same(folder, report, store, thorough=thorough):
            known = read_confirmation(folder)
            note = Confirmation(
                phibuild_version=report.phibuild_version,
                time=time.time(),
                command=report.command,
                host=report.host,
                confirmations=known.confirmations + 1 if known else 1,
            )
            write_atomically(folder / CONFIRMED, document_text(note) + "\n")
            return folder
    return None


@contextlib.contextmanager
def _latest_held(base: Path) -> Iterator[Path | None]:
    """Give the latest run and keep it from being removed or confirmed by another; None if there is
    none. Raises OSError if it may not be changed."""
    folder = latest_run(base)
    if folder is None:
        yield None
        return
    with held(folder / MARK):
        yield folder if latest_run(base) == folder else None
        (folder / MARK).unlink(missing_ok=True)


def _says_the_same(folder: Path, report: Report, store: Store, *, thorough: bool) -> bool:
    try:
        before = read_report(folder)
    except ConfigError:
        return False
    if before.totals.interrupted or _lasting(before) != _lasting(report):
        return False
    pages = all((folder / name).is_file() for name in ("report.md", "report.html"))
    return pages and all(
        _is_whole(folder, cell, store, thorough=thorough) for cell in report.cells if cell.artifact
    )


def _lasting(report: Report) -> Report:
    """Return a report without what is each run's own: when, where and by which command it ran, and
    which artifacts were in the store already."""
    cells = [
        cell.model_copy(update={"status": "cached"}) if cell.status == "built" else cell
        for cell in report.cells
    ]
    own = {"built": 0, "cached": 0, "steps": 0, "seconds": 0.0}
    return report.model_copy(
        update={
            "command": "",
            "host": None,
            "cells": cells,
            "steps": [],
            "executor": None,
            "totals": report.totals.model_copy(update=own),
        }
    )


def _is_whole(folder: Path, cell: ReportCell, store: Store, *, thorough: bool) -> bool:
    """Return whether a run's artifact is what its cell says. Files that are the store's have been
    looked at when the cell was made."""
    assert cell.artifact is not None
    place = folder / cell.artifact
    if cell.provenance and _same_files(store.root / ARTIFACTS / cell.provenance.key, place):
        return True
    found = read_artifact(place)
    if found is None or found.digest != cell.artifact_digest:
        return False
    return not (check_artifact(found) if thorough else damage(found))


def _same_files(kept: Path, place: Path) -> bool:
    """Return whether all files of a folder are hard links in the other too."""
    try:
        for path, _, names in os.walk(kept):
            beside = place / Path(path).relative_to(kept)
            if not all(os.path.samefile(os.path.join(path, name), beside / name) for name in names):
                return False
    except OSError:
        return False
    return kept.is_dir()
