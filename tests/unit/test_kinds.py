"""One of each kind has its turn, and all of a product when that is asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support.kinds import some

TESTS = Path(__file__).resolve().parents[1]


def test_what_is_not_kept_is_marked() -> None:
    found = some([("a", 1), ("b", 2)], [("b", 2)])
    assert [one.values for one in found] == [("a", 1), ("b", 2)]
    assert [[mark.name for mark in one.marks] for one in found] == [["every"], []]


def test_what_is_kept_must_be_one_of_them() -> None:
    with pytest.raises(AssertionError, match="none of them"):
        some(["a"], ["b"])


@pytest.mark.parametrize("option", [(), ("--every",), ("--faults-table", "table.md")])
def test_options_that_ask_for_all(option: tuple[str, ...], tmp_path: Path) -> None:
    file = TESTS / "slow" / "test_faults_worker.py"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", str(file), "--collect-only", "-q", *option],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    found = done.stdout.count("test_faults_worker.py::")
    assert found == 17 if option else 0 < found < 17
