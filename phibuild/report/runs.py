"""Finding runs and what is in them: `outputs/<recipe>/<timestamp>/`, `latest` the newest."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

from phibuild.errors import ConfigError, Problem, suggest
from phibuild.report.documents import Report
from phibuild.report.run_folders import RUN_NAME, last_time, run_order
from phibuild.store.documents import ArtifactManifest
from phibuild.store.manifest import MANIFEST, StoredArtifact, read_artifact, read_manifest
from phibuild.system.places import as_path

REPORT, LATEST = "report.json", "latest"
_BACK = re.compile(r"(.+)~(\d{1,6})")
_REMEDY = "build again, or remove the run's folder"
COPY_AGAIN = "build it again, or copy it again from where it is whole"


def find_run(output: Path, name: str | None) -> Path:
    """Return a run's folder: a path, a recipe's newest by its name, one by its time, the newest of
    all (None, "latest"); with ~N after any of them the run of its recipe that many before it.
    Raises ConfigError if there is none."""
    if not name:
        runs = sorted(output.glob("*/latest/report.json"), key=lambda path: last_time(path.parent))
        if not runs:
            raise ConfigError(Problem("no runs here", str(output), "phibuild build makes one"))
        return runs[-1].parent
    folder = _named(output, name)
    if folder is None and (match := _BACK.fullmatch(name)):
        folder = run_before(find_run(output, match[1]), int(match[2]))
        if folder is None:
            what = f"no run {name!r}: there are not so many before it"
            raise ConfigError(Problem(what, str(output), "'phibuild diff' compares what is there"))
    if folder is None:
        known = sorted(path.parent.name for path in output.glob("*/latest"))
        raise ConfigError(Problem(f"no run {name!r}", str(output), suggest(name, known) or None))
    return folder


def _named(output: Path, name: str) -> Path | None:
    """Return the folder of the run that a name without ~N means, if there is one."""
    for folder in (_given(name), output / name, output / name / LATEST):
        if _is_run(folder):
            return folder
    if name == LATEST:
        return find_run(output, None)
    if not is_time(name):
        return None
    found = [folder for folder in output.glob(f"*/{name}") if _is_run(folder)]
    if len(found) > 1:
        recipes = sorted(f"{folder.parent.name}/{name}" for folder in found)
        raise ConfigError(
            Problem(f"several runs {name!r}", str(output), f"say which: {', '.join(recipes)}")
        )
    return found[0] if found else None


def _given(name: str) -> Path:
    try:
        return as_path(name)
    except RuntimeError:  # ~nobody, or a run before one that is called so
        return Path(name)


def _is_run(folder: Path) -> bool:
    try:
        return (folder / REPORT).is_file()
    except (OSError, ValueError):  # a name too long, a NUL
        return False


def find_report(output: Path, name: str | None) -> Path:
    """Return the file of a run's report: one that is given, or that of the run that `find_run`
    finds."""
    if name:
        with contextlib.suppress(OSError, ValueError):  # a name too long, a NUL
            if _given(name).is_file():
                return _given(name)
    return find_run(output, name) / REPORT


def is_time(name: str) -> bool:
    """Whether a folder is called as runs are: by the time of its start."""
    return RUN_NAME.fullmatch(name) is not None


def runs_of(output: Path, recipe: str) -> list[Path]:
    """Return the folders of a recipe's finished runs, newest first."""
    return _finished(output / recipe)


def newest_of(output: Path, recipe: str) -> Path | None:
    """Return the folder of a recipe's newest run, None if it has none."""
    return next(iter(runs_of(output, recipe)), None)


def run_before(folder: Path, count: int = 1) -> Path | None:
    """Return the run of the same recipe that was so many runs before that in `folder`, which may be
    unfinished; None if there is none."""
    folder = folder.resolve()
    if not is_time(folder.name):
        return None
    own = run_order(folder)
    runs = [folder, *(one for one in _finished(folder.parent) if run_order(one) < own)]
    return runs[count] if count < len(runs) else None


def _finished(base: Path) -> list[Path]:
    try:
        found = [path for path in base.iterdir() if is_time(path.name) and _is_run(path)]
    except (OSError, ValueError):
        return []
    return sorted(found, key=run_order, reverse=True)


def read_report(place: Path) -> Report:
    """Return a run's report, by its folder or its file. Raises ConfigError if it is damaged, or
    none that this phibuild can read."""
    path = place / REPORT if place.is_dir() else place
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
    reports = sorted(
        output.glob("*/*/report.json"), key=lambda p: last_time(p.parent), reverse=True
    )
    for path in reports:
        for cell in read_report(path.parent).cells:
            if cell.artifact:
                yield cell.id, path.parent / cell.artifact
