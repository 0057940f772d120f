"""Finding runs and what is in them: `outputs/<recipe>/<timestamp>/`, `latest` the newest."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from phibuild.errors import ConfigError, Problem, suggest
from phibuild.report.documents import Report
from phibuild.store.documents import ArtifactManifest
from phibuild.store.manifest import MANIFEST, StoredArtifact, read_artifact, read_manifest

_REMEDY = "build again, or remove the run's folder"
COPY_AGAIN = "build it again, or copy it again from where it is whole"


def find_run(output: Path, name: str | None) -> Path:
    """Return a run's folder: a path, a recipe's latest by its name, the newest of all (None)."""
    if name:
        given = Path(name)
        for folder in (given, output / name, output / name / "latest"):
            if (folder / "report.json").is_file():
                return folder
        known = sorted(path.parent.name for path in output.glob("*/latest"))
        raise ConfigError(Problem(f"no run {name!r}", str(output), suggest(name, known) or None))
    runs = sorted(output.glob("*/latest/report.json"), key=lambda path: path.stat().st_mtime)
    if not runs:
        raise ConfigError(Problem("no runs here", str(output), "phibuild build makes one"))
    return runs[-1].parent


def read_report(folder: Path) -> Report:
    """Return a run's report. Raises ConfigError if it is damaged, or none that this phibuild can
    read."""
    path = folder / "report.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(Problem(f"cannot be read: {error}", str(path), _REMEDY)) from error
    try:
        return Report.read(data)
    except ValueError as error:
        raise ConfigError(
            Problem(f"is not a phibuild report: {error}", str(path), _REMEDY)
        ) from error


def find_artifact(what: str, output: Path) -> StoredArtifact:
    """Return the artifact of a folder, or of a cell id in the newest run that has built it."""
    folder = Path(what)
    if (folder / MANIFEST).is_file():
        try:
            return StoredArtifact(folder, read_manifest(folder, ArtifactManifest))
        except (OSError, ValueError) as error:
            raise ConfigError(
                Problem(f"its {MANIFEST} is damaged, or of no artifact: {error}", what, COPY_AGAIN)
            ) from error
    if folder.is_dir():
        raise ConfigError(
            Problem("no phibuild artifact (no manifest.json)", what, "give a folder of artifacts/")
        )
    known = set()
    for name, place in built_cells(output):
        known.add(name)
        found = read_artifact(place) if name == what else None
        if found:
            return found
    raise ConfigError(
        Problem(
            f"no artifact {what!r}", str(output), suggest(what, known) or "phibuild build first"
        )
    )


def built_cells(output: Path) -> Iterator[tuple[str, Path]]:
    """Yield the id and the artifact's folder of every cell that was built, newest run first."""
    reports = sorted(output.glob("*/*/report.json"), key=lambda p: p.stat().st_mtime, reverse=True)
    for path in reports:
        for cell in read_report(path.parent).cells:
            if cell.artifact:
                yield cell.id, path.parent / cell.artifact
