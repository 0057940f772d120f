"""Plans: accelerators that nothing is made for, toolchains that are not there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.kinds import some

WORDS = ("plan", "model=phi3-tiny-trained", "evaluation=none")
AMD = "AMD's NPU takes ONNX models"
APPLE = "Apple's Neural Engine takes Core ML models"


def planned(folder: Path, *words: str, wide: bool) -> str:
    own = {"PHIBUILD_TOOLCHAINS": str(folder / "none"), "PHIBUILD_STORE": str(folder / "store")}
    command = [sys.executable, "-m", "phibuild", *WORDS, *words, *(["--wide"] if wide else [])]
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **own, "COLUMNS": "400"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return " ".join(done.stdout.split())


@pytest.mark.parametrize("wide", some([True, False], [False]))
def test_accelerators(tmp_path: Path, wide: bool) -> None:
    said = planned(tmp_path, "recipe=copilot_pc", wide=wide)
    assert said.count(AMD) == 1
    assert f"copilot_pc_amd, copilot_pc_amd_32gb, ryzen_ai_max_128gb: {AMD}" in said
    assert "phibuild does not build them" in said
    assert APPLE not in said
    said = planned(tmp_path, "recipe=quickstart", wide=wide)
    assert f"mac: {APPLE}" in said
    assert AMD not in said
    assert "Neural Engine" not in planned(tmp_path, "recipe=iot", wide=wide)
    assert "Neural Engine" not in planned(
        tmp_path, "recipe=quickstart", "backend=litert", wide=wide
    )


def test_toolchains_and_their_sizes(tmp_path: Path) -> None:
    said = planned(tmp_path, "recipe=quickstart", "backend=litert", wide=False)
    assert "toolchains to install: litert (160 MB), pytorch (970 MB)" in said
