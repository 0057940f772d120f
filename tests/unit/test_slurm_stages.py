"""How far a job is: what it says on its node is told where it is waited for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from phibuild.execute.slurm.stages import STAGE, RemoteProgress, show_stage


@dataclass
class Told:
    """A listener that keeps what it is told."""

    stages: list[tuple[str, str, float | None]] = field(default_factory=list)

    def started(self, step: str, what: str) -> None: ...
    def stage(self, step: str, stage: str, fraction: float | None) -> None:
        self.stages.append((step, stage, fraction))

    def noted(self, step: str, text: str) -> None: ...
    def failed(self, step: str, reason: str) -> None: ...
    def ended(self, step: str, failed: str | None, seconds: float) -> None: ...
    def over(self, step: str) -> None: ...


def test_a_stage_goes_from_the_node_to_who_waits(tmp_path: Path) -> None:
    told = Told()
    show_stage(tmp_path, "build.phi (job 7)", told)
    assert told.stages == []  # it has not said anything yet
    with RemoteProgress(tmp_path, every=0) as progress:
        progress.started("build.phi", "build Q4_0")
        progress.stage("build.phi", "Q4_0: converting", 0.5)
        show_stage(tmp_path, "build.phi (job 7)", told)
        progress.stage("build.phi", "Q4_0: checking", None)
        show_stage(tmp_path, "build.phi (job 7)", told)
    assert told.stages == [
        ("build.phi (job 7)", "Q4_0: converting", 0.5),
        ("build.phi (job 7)", "Q4_0: checking", None),
    ]


def test_a_shared_folder_is_not_written_all_the_time(tmp_path: Path) -> None:
    told, progress = Told(), RemoteProgress(tmp_path, every=3600)
    for part in range(100):
        progress.stage("build.phi", "converting", part / 100)
    show_stage(tmp_path, "build.phi", told)
    assert told.stages == [("build.phi", "converting", 0.0)]


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"stage": 3}', '{"fraction": 0.5}'])
def test_what_is_no_stage_is_not_told(tmp_path: Path, damage: str) -> None:
    told = Told()
    (tmp_path / STAGE).write_text(damage, encoding="utf-8")
    show_stage(tmp_path, "build.phi", told)
    assert told.stages == []


def test_a_folder_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    progress = RemoteProgress(tmp_path / "gone", every=0)
    progress.stage("build.phi", "converting", 0.5)
