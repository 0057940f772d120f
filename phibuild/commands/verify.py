"""`phibuild verify`: every file of an artifact or a run against its manifest."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from phibuild.errors import EXIT_CELL_FAILED, EXIT_OK, ConfigError, Problem
from phibuild.places import user_path
from phibuild.report.runs import find_run, read_report
from phibuild.store import MANIFEST, check_artifact, read_artifact


def run(arguments: argparse.Namespace) -> int:
    """Check one artifact folder or all artifacts of a run; 1 if any differs."""
    found = {str(folder): _check(folder) for folder in _folders(arguments)}
    if arguments.json:
        print(json.dumps(found, indent=1))
    else:
        for name, problems in found.items():
            print(f"{'ok ' if not problems else 'BAD'} {name}")
            for problem in problems:
                print(f"    {problem}")
    return EXIT_CELL_FAILED if any(found.values()) else EXIT_OK


def _check(folder: Path) -> list[str]:
    artifact = read_artifact(folder)
    if artifact is None:
        return [f"{MANIFEST}: missing or damaged"]
    return check_artifact(artifact)


def _folders(arguments: argparse.Namespace) -> list[Path]:
    given = Path(arguments.what) if arguments.what else None
    if given and (given / MANIFEST).is_file():
        return [given]
    run_folder = find_run(user_path(arguments.output, "--output"), arguments.what)
    report = read_report(run_folder)
    folders = [run_folder / cell["artifact"] for cell in report["cells"] if cell["artifact"]]
    if not folders:
        raise ConfigError(Problem("the run has no artifacts", str(run_folder)))
    return folders
