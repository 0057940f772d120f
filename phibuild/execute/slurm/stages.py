"""How far a job is: `stage.json` in its folder, written on its node and read where it is waited
for."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path

from phibuild.execute.context import Listener
from phibuild.execute.display.plain import PlainProgress
from phibuild.schema import Document
from phibuild.store.documents import RareFigure
from phibuild.system.files import write_atomically

STAGE = "stage.json"
_EVERY_SECONDS = 5.0
"""How often a job says how far it is: the folder may be on a busy network file system."""


class JobStage(Document):
    """stage.json of a running job."""

    stage: str
    fraction: RareFigure = None


class RemoteProgress(PlainProgress):
    """The lines of a job's log, and its stage for whoever waits for it."""

    def __init__(self, folder: Path, every: float = _EVERY_SECONDS) -> None:
        super().__init__()
        self._folder, self._every = folder, every
        self._wrote = float("-inf")

    def __enter__(self) -> RemoteProgress:
        super().__enter__()
        return self

    def stage(self, step: str, stage: str, fraction: float | None) -> None:
        super().stage(step, stage, fraction)
        if time.monotonic() - self._wrote < self._every:
            return
        self._wrote = time.monotonic()
        text = json.dumps(JobStage(stage=stage, fraction=fraction).model_dump(mode="json"))
        with contextlib.suppress(OSError):  # it is only to be looked at
            write_atomically(self._folder / STAGE, text)


def show_stage(folder: Path, name: str, listener: Listener) -> None:
    """Tell the listener how far the job of a folder is, if it says so."""
    try:
        found = JobStage.read(json.loads((folder / STAGE).read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):
        return
    listener.stage(name, found.stage, found.fraction)
