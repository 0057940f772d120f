"""The commands of README and docs that build something: each page from its first to its last, as a
reader would, in a folder of its own. The store is one for all: what a page built is there, and what
the quickstart and the shelf's recipes leave in it, which other tests look at. Judging is short, by
that folder's own conf/, as it was there: what it finds is what other tests are about."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from support.faults import Site
from support.page_commands import PAGES, ROOT, Command, Scratch, commands, failed
from support.page_excuses import runnable

SHORT = """\
enabled: true
adaptive: true
windows: 1
window_tokens: 256
decode_tokens: 4
max_reference_bytes: 2 GiB
text: null
"""


def story(page: Path) -> list[Command]:
    found = (runnable(command) for command in commands(page))
    return [command for command in found if command]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, shelf: Site) -> Path:
    store = tmp_path_factory.mktemp("pages") / "store"
    shutil.copytree(shelf.store, store, copy_function=os.link)
    return store


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any(not command.is_quick for command in story(page))],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_a_page_from_first_to_last(page: Path, store: Path, tmp_path: Path, every: bool) -> None:
    scratch = Scratch(tmp_path / "work", store)
    scratch.prepare(page)
    conf = scratch.folder / "conf"
    (conf / "evaluation").mkdir()
    for name in ("standard", "quick"):
        (conf / "evaluation" / f"{name}.yaml").write_text(SHORT, encoding="utf-8")
    if not every or page.name != "qnn.md":  # whose story Qualcomm's simulator is
        shipped = (ROOT / "conf" / "backend" / "qnn.yaml").read_text(encoding="utf-8")
        (conf / "backend").mkdir()
        rests = shipped.replace("gate_tokens: null", "gate_tokens: 0")
        (conf / "backend" / "qnn.yaml").write_text(rests, encoding="utf-8")
    for command in story(page):
        done = scratch.run(command, 3600)
        assert done.returncode == 0, failed(command, done)
