"""What the contract test takes from the recipes, and when it writes docs/support.md."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from phibuild.backends.registry import SHIPPED
from support import targets
from support.contract import SHAPES, due_precisions
from support.quickstart import devices_of
from support.support_table import MODELS, PRECISIONS, PROPERTY, write_table

ROOT = Path(__file__).resolve().parents[2]


class Reporter:
    """What pytest knows at its end of tests that passed, a property each."""

    def __init__(self, rows: list[dict[str, str]]) -> None:
        found = [SimpleNamespace(user_properties=[(PROPERTY, json.dumps(row))]) for row in rows]
        self.stats: dict[str, list[Any]] = {"passed": [SimpleNamespace(), *found], "failed": []}
        self.said = ""

    def write_line(self, line: str, **markup: bool) -> None:
        self.said += line


def rows() -> list[dict[str, str]]:
    return [
        {
            "shape": shape,
            "backend": backend,
            "target": "CPU",
            "precision": "int4",
            "square": "native",
        }
        for backend in SHIPPED
        for shape in SHAPES
    ]


def write(found: list[dict[str, str]], path: Path) -> tuple[bool, str]:
    reporter = Reporter(found)
    written = write_table(cast(pytest.TerminalReporter, reporter), path)
    return written, reporter.said


def test_the_page_is_written_of_all_shapes_and_backends_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "support.md"
    path.write_text("as it was")
    failed = [row for row in rows() if (row["shape"], row["backend"]) != ("phi4", "qnn")]
    written, said = write(failed, path)
    assert not written
    assert f"{path} is left as it was: not built, or not passed: qnn of phi4; it takes all" in said
    assert path.read_text() == "as it was"
    assert write(rows(), path) == (True, f"{3 * len(SHIPPED)} squares: {path}")
    assert path.read_text().count("| native |") == 3 * len(SHIPPED)
    assert tuple(MODELS) == SHAPES


def test_pytest_fails_where_the_page_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "support.md"
    words = ["-q", "-p", "no:cacheprovider", "--support", str(path)]
    test = f"{__file__}::{test_due_precisions.__name__}"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words, test],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"ERROR: {path} is left as it was: not built, or not passed: llamacpp of phi3, " in (
        done.stdout.replace("\n", "")
    )
    assert "Traceback" not in done.stdout + done.stderr
    assert not path.exists()


def test_due_precisions() -> None:
    assert due_precisions("qnn") == {"int4", "int8"}
    assert due_precisions("coreai") == {"int4", "int8", "fp16", "fp32"}
    assert all(devices_of(backend) for backend in SHIPPED)


@pytest.mark.parametrize("backend", SHIPPED)
def test_every_target_has_its_turn(backend: str) -> None:
    """All with one shape, and each with another one."""
    every = targets.targets(backend)
    some = {shape: targets.some_targets(backend, shape) for shape in SHAPES}
    assert all(some.values())
    assert some["phi3"] == every
    assert {*some["phi4mini"], *some["phi4"]} == set(every)


def test_a_backend_that_says_no_targets_has_the_recipes_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, "_TARGETS", {})
    assert targets.targets("litert") == ("raspberry_pi_5",)
    targets.write_recipe(tmp_path, "litert", targets.targets("litert"))
    recipe = json.loads((tmp_path / "recipes" / f"{targets.RECIPE}.yaml").read_text())
    assert recipe == {"devices": {"d0": {"litert": dict.fromkeys(PRECISIONS)}}}
    assert targets.target_of("litert", "d0") == "raspberry_pi_5"
