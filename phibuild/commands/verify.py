"""`phibuild verify`: every file of an artifact, a run or the whole store against its manifest."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from phibuild.commands.answers import VerifyAnswer
from phibuild.errors import EXIT_CELL_FAILED, EXIT_OK, ConfigError, Problem, suggest
from phibuild.report.runs import built_cells, find_run, read_report
from phibuild.schema import document_text
from phibuild.store.inventory import entries
from phibuild.store.manifest import MANIFEST, Sealed, check_artifact, read_sealed
from phibuild.store.store import MEASURES, Store, read_entry
from phibuild.system.places import store_folder, user_path


def run(arguments: argparse.Namespace) -> int:
    """Check one artifact, all artifacts of a run or, with --store, all that is in the store; 1 if
    anything differs."""
    if arguments.store and arguments.what:
        raise ConfigError(Problem("--store takes no run", f"command line: {arguments.what}"))
    if arguments.store:
        found = _check_store()
    else:
        found = {str(folder): _check(read_sealed(folder)) for folder in _folders(arguments)}
    if arguments.json:
        print(document_text(VerifyAnswer(found)))
    else:
        for name, problems in found.items():
            print(f"{'ok ' if not problems else 'BAD'} {name}")
            for problem in problems:
                print(f"    {problem}")
    if not any(found.values()):
        return EXIT_OK
    print(
        "'phibuild build --verify' sets damaged ones aside and builds them again", file=sys.stderr
    )
    return EXIT_CELL_FAILED


def _check(sealed: Sealed | None) -> list[str]:
    return check_artifact(sealed) if sealed else [f"{MANIFEST}: missing or damaged"]


def _check_store() -> dict[str, list[str]]:
    store = Store(store_folder())
    found = {}
    for entry in entries(store):
        if entry.kind == MEASURES:
            intact = store.measure(entry.key) is not None
            found[str(entry.path)] = [] if intact else ["damaged"]
        else:
            found[str(entry.path)] = _check(read_entry(entry.kind, entry.path))
    return found


def _folders(arguments: argparse.Namespace) -> list[Path]:
    what, output = arguments.what, user_path(arguments.output, "--output")
    known = []
    if what:
        if (Path(what) / MANIFEST).is_file():
            return [Path(what)]
        for cell, folder in built_cells(output):
            if cell == what:
                return [folder]
            known.append(cell)
    try:
        run_folder = find_run(output, what)
    except ConfigError as error:
        if not what:
            raise
        known += [path.parent.name for path in output.glob("*/latest")]
        raise ConfigError(
            Problem(f"no run, cell or artifact {what!r}", str(output), suggest(what, known) or None)
        ) from error
    cells = read_report(run_folder).cells
    folders = [run_folder / cell.artifact for cell in cells if cell.artifact]
    if not folders:
        raise ConfigError(Problem("the run has no artifacts", str(run_folder)))
    return folders
