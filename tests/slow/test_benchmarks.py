"""The benchmarks' scripts do what they say, on a checkpoint that is small enough for a test."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(sys.platform != "linux", reason="memory is sampled from /proc")
def test_small_machine(tmp_path: Path) -> None:
    words = ["--size", "tiny", "--backends", "mlx", "--set"]
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "small_machine.py", tmp_path, *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads((tmp_path / "small_machine.json").read_text(encoding="utf-8"))["results"]
    assert [row["what"] for row in rows] == ["int4", "set"]
    for row in rows:
        assert row["differing"] == []
        for who in ("vendor", "phibuild"):
            assert row[who]["cpu_seconds"] > 0.1
            assert row[who]["written_bytes"] > 0
            assert 20e6 < row[who]["peak_anonymous_bytes"] <= row[who]["peak_rss_bytes"]
        assert row["worker"]["peak_anonymous_bytes"] <= row["phibuild"]["peak_anonymous_bytes"]
    assert "| yes" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config", "log.txt", "models", "small_machine.json",
    ]  # fmt: skip
