"""The example of docs/backend_tutorial.md: 200 lines at most, all of which the page shows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from conftest import ROOT

EXAMPLE = ROOT / "examples" / "phibuild-numpy"
PACKAGE = EXAMPLE / "phibuild_numpy"
PAGE = (ROOT / "docs" / "backend_tutorial.md").read_text(encoding="utf-8")
OTHERS = {
    "toml": (EXAMPLE / "pyproject.toml",),
    "yaml": (PACKAGE / "conf.yaml", EXAMPLE / "recipes" / "numpy.yaml"),
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


def test_it_has_200_lines_of_python_at_most() -> None:
    count = sum(
        len(path.read_text(encoding="utf-8").splitlines()) for path in EXAMPLE.rglob("*.py")
    )
    assert 150 < count <= 200


def test_the_page_shows_all_of_its_python() -> None:
    """In the order of the files, each line once."""
    shown = [line for block in blocks("python") for line in lines(block)]
    files = (PACKAGE / "spec.py", PACKAGE / "worker.py")
    assert shown == [line for path in files for line in lines(path.read_text(encoding="utf-8"))]
    assert {path.name for path in EXAMPLE.rglob("*.py")} == {"__init__.py", "spec.py", "worker.py"}


@pytest.mark.parametrize("language", OTHERS)
def test_the_page_shows_its_other_files_as_they_are(language: str) -> None:
    texts = [path.read_text(encoding="utf-8") for path in OTHERS[language]]
    assert blocks(language)
    for block in blocks(language):
        assert any(block in text for text in texts), block


def test_the_page_names_files_that_are_there() -> None:
    named = re.findall(r"`((?:tests|phibuild|docs|examples)/[\w./-]+)`", PAGE)
    named += [f"docs/{path}" for path in re.findall(r"\]\(([\w./-]+)\)", PAGE)]
    assert len(named) > 4
    assert [path for path in named if not Path(ROOT / path).exists()] == []


def test_contributing_points_there() -> None:
    assert "docs/backend_tutorial.md" in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert "docs/backend_tutorial.md" in (ROOT / "README.md").read_text(encoding="utf-8")
