"""Models of the Hub that another program put into its cache, without all of the small files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from conftest import CommandLine
from phibuild.checkpoints.hub_files import lacking
from support.hub_server import Hub, serve

pytestmark = pytest.mark.lent

ONE_CELL = ("evaluation=none", "device=raspberry_pi_5", "backend=llamacpp", "precision=int4")
NAMED = "additional_chat_templates/short.jinja"
_RESOLVE = """
import json, sys
from phibuild.checkpoints.resolve import resolve_model
from phibuild.config.catalogue import Catalogue
from phibuild.config.model_choice import ModelChoice
from phibuild.errors import PhibuildError
try: found = resolve_model(ModelChoice(path="org/phi"), Catalogue({}), fetch="missing")
except PhibuildError as error: print(json.dumps([[], [], str(error)]))
else: print(json.dumps([sorted(found.links), list(found.lacking), " ".join(found.notes)]))
"""


@dataclass
class Cache:
    """A Hub's cache that others fill, and phibuild reads."""

    hub: Hub
    phibuild: CommandLine
    home: Path

    def run(self, program: str, *words: str, **environ: str) -> str:
        """Return what a program in Python says that uses this Hub and this cache."""
        environ = {**os.environ, **self.hub.environ(self.home), **environ}
        return subprocess.run([sys.executable, "-c", program, *words], env=environ, check=True,
                              capture_output=True, text=True).stdout.strip()  # fmt: skip

    def file_by_file(self, *without: str) -> Path:
        """Fetch as Transformers does; it asks for what may not be there too."""
        names = {path.name for path in self.folder.iterdir()} - {*without}
        program = (
            "import sys\n"
            "from huggingface_hub import errors, hf_hub_download\n"
            "for name in sys.argv[1:]:\n"
            "    try: print(hf_hub_download('org/phi', name))\n"
            "    except errors.EntryNotFoundError: pass\n"
        )
        asked = ("config.json", "added_tokens.json", "special_tokens_map.json")
        return Path(self.run(program, *asked, *sorted(names)).splitlines()[-1]).parent

    def by_patterns(self, *patterns: str) -> Path:
        """Fetch as `hf download --include` does."""
        program = (
            "import sys\n"
            "from huggingface_hub import snapshot_download\n"
            "print(snapshot_download('org/phi', allow_patterns=sys.argv[1:] or None))\n"
        )
        return Path(self.run(program, *patterns))

    def plan(self, **environ: str) -> str:
        """Return the plan of one cell; it asks nobody."""
        self.hub.log.clear()
        environ = {**self.hub.environ(self.home), **environ}
        done = self.phibuild("plan", "model=org/phi", *ONE_CELL, "--wide", cwd=None, **environ)
        assert done.returncode == 0, done.stderr
        assert self.hub.log == []
        return done.stdout

    def resolve(self, **environ: str) -> tuple[set[str], list[str], str]:
        """Resolve the model as a build does: the source's files, what it may lack, its notes."""
        links, missing, notes = json.loads(self.run(_RESOLVE, **environ))
        return set(links), missing, notes

    @property
    def folder(self) -> Path:
        return self.phibuild.folder / "phi"


@pytest.fixture
def cache(
    tmp_path: Path, phibuild: CommandLine, checkpoint: Callable[..., Path]
) -> Iterator[Cache]:
    """Return an empty cache of a Hub that has org/phi; its files lie in `folder` too."""
    with serve(Hub()) as hub:
        found = Cache(hub, phibuild, tmp_path / "hf")
        shutil.copytree(checkpoint("phi3", layers=2, shards=2), found.folder)
        hub.add("org/phi", found.folder)
        yield found


@pytest.mark.case(
    "building",
    "a model in the Hub's cache that another program fetched, without its licence",
    "-",
    "a build fetches what that commit has besides; without the Hub, plan and report name it",
)
def test_what_transformers_left_out_is_fetched_once(cache: Cache) -> None:
    folder = cache.file_by_file("LICENSE")
    note = "LICENSE, additional_chat_templates may be missing in the Hub's cache; a build asks the"
    assert note in cache.plan()
    cache.hub.add("org/phi", cache.folder, {"LICENSE": b"that of the next commit"})
    files = {path.name for path in cache.folder.iterdir()}
    assert cache.resolve() == (files, [], "")
    assert (folder / "LICENSE").read_bytes() == (cache.folder / "LICENSE").read_bytes()
    assert cache.hub.sent() == {"LICENSE"}
    cache.hub.log.clear()
    assert cache.resolve() == (files, [], "")
    assert cache.hub.log == []
    assert "may be missing" not in cache.plan()


def test_what_patterns_left_out_is_known_without_the_hub(cache: Cache) -> None:
    folder = cache.by_patterns("*.json", "*.safetensors")
    left_out = ["tokenizer.model", "chat_template.jinja", "LICENSE"]
    assert f"phi: {', '.join(left_out)} may be missing in the Hub's cache; a build" in cache.plan()
    so = "may be missing in the Hub's cache, and so in the artifacts: the Hub cannot be reached"
    files = {path.name for path in cache.folder.iterdir()}
    offline = cache.resolve(HF_HUB_OFFLINE="1")
    assert offline == (files - {*left_out}, left_out, f"{', '.join(left_out)} {so}")
    assert cache.resolve(HF_ENDPOINT="http://127.0.0.1:9") == offline
    assert cache.resolve() == (files, [], "")
    assert (folder / "chat_template.jinja").read_bytes() == (
        cache.folder / "chat_template.jinja"
    ).read_bytes()


def test_a_whole_snapshot_asks_for_nothing(cache: Cache) -> None:
    cache.hub.add("org/phi", cache.folder, {NAMED: b"short"})
    folder = cache.by_patterns()
    assert lacking(folder) == ()
    assert "may be missing" not in cache.plan(HF_HUB_OFFLINE="1")
    (folder / NAMED).unlink()
    assert lacking(folder) == (NAMED,)
    links, missing, _ = cache.resolve()
    assert NAMED in links
    assert missing == []


def test_what_the_hub_does_not_give_is_a_note_what_it_gives_damaged_an_error(cache: Cache) -> None:
    cache.file_by_file("LICENSE")
    cache.hub.failing["LICENSE"] = 503
    _, missing, note = cache.resolve()
    assert "LICENSE" in missing
    assert "LICENSE may be missing in the Hub's cache, and so in the artifacts: the Hub" in note
    cache.hub.failing.clear()
    cache.hub.damaged.add("LICENSE")
    assert "differs from the Hub's, removed from the cache: LICENSE" in cache.resolve()[2]
    cache.hub.damaged.clear()
    assert cache.resolve()[1:] == ([], "")


@pytest.mark.parametrize("tree", ["", "[]", '{"format_version": 2, "files": {}}', None])
def test_without_a_list_of_its_files_all_that_a_build_reads_may_be_missing(
    tmp_path: Path, tree: str | None
) -> None:
    folder = tmp_path / "models--org--phi" / "snapshots" / "c0"
    for file in (folder / "LICENSE.txt", folder / "config.json"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    if tree is not None:
        (tmp_path / "models--org--phi" / "trees").mkdir()
        (tmp_path / "models--org--phi" / "trees" / "c0.json").write_text(tree)
    absent = tmp_path / "models--org--phi" / ".no_exist" / "c0" / "added_tokens.json"
    absent.parent.mkdir(parents=True)
    absent.touch()
    assert lacking(folder) == (
        "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
        "chat_template.jinja", "generation_config.json", "additional_chat_templates",
    )  # fmt: skip
    (folder / "LICENSE.txt").unlink()
    assert "LICENSE" in lacking(folder)
    assert "LICENSE.txt" not in lacking(folder)
