"""docs/ as a site: it builds without a warning, no link of it is broken, nothing is fetched."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from conftest import ROOT

DOCS = ROOT / "docs"
LOADED = {"script": "src", "link": "href", "img": "src", "iframe": "src"}
"""Tags that a browser fetches something for, and the attribute that says what."""


@dataclass
class Page(HTMLParser):
    """The links, the names and what is loaded of an HTML page."""

    links: list[str] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    loaded: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.names |= {value for key in ("id", "name") if (value := found.get(key))}
        if tag == "a" and (href := found.get("href")):
            self.links.append(href)
        if tag in LOADED and (value := found.get(LOADED[tag])):
            self.loaded.append(value)


def build(source: Path, target: Path) -> subprocess.CompletedProcess[str]:
    words = ["-W", "-n", "--keep-going", "-q", "-b", "html", "-d", str(target / "doctrees")]
    return subprocess.run(
        [sys.executable, "-m", "sphinx", *words, str(source), str(target / "html")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Page]:
    """Return every page of the site by its file."""
    target = tmp_path_factory.mktemp("site")
    done = build(DOCS, target)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {}
    for path in (target / "html").rglob("*.html"):
        found[path] = Page()
        found[path].feed(path.read_text(encoding="utf-8"))
    return found


def broken(pages: dict[Path, Page]) -> Iterator[str]:
    for path, page in pages.items():
        for link in [*page.links, *page.loaded]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file():
                yield f"{path.name}: {link}"
            elif parts.fragment and target in pages:
                names = pages[target].names
                if unquote(parts.fragment) not in names and path.name not in ("404.html",):
                    yield f"{path.name}: {link}"


def test_no_link_is_broken(pages: dict[Path, Page]) -> None:
    assert sum(len(page.links) for page in pages.values()) > 1000
    assert sorted(broken(pages)) == []


def test_nothing_is_fetched_from_elsewhere(pages: dict[Path, Page]) -> None:
    loaded = {one for page in pages.values() for one in page.loaded}
    assert loaded
    assert [one for one in loaded if urlsplit(one).netloc] == []


def test_every_page_is_reached_and_can_be_searched(pages: dict[Path, Page]) -> None:
    (index,) = (path for path in pages if path.name == "index.html")
    reached = {(index.parent / urlsplit(link).path).resolve() for link in pages[index].links}
    for source in set(DOCS.rglob("*.md")) - {DOCS / "index.md"}:
        made = index.parent / source.relative_to(DOCS).with_suffix(".html")
        assert made in reached, source
    search = (index.parent / "searchindex.js").read_text(encoding="utf-8")
    for word in ("quickstart", "backends/llamacpp", "gptq", "hexagon"):
        assert f'"{word}"' in search or f"{word}:" in search, word


@pytest.mark.parametrize(
    "text", ["[there](nowhere.md)", "[there](#nowhere)", "[there](other.md#nowhere)"]
)
def test_a_broken_link_is_an_error(text: str, tmp_path: Path) -> None:
    source = tmp_path / "docs"
    source.mkdir()
    (source / "conf.py").write_text((DOCS / "conf.py").read_text("utf-8"), encoding="utf-8")
    (source / "other.md").write_text("# Other\n", encoding="utf-8")
    index = "# Start\n\n{}\n\n```{{toctree}}\nother\n```\n"
    for written, code in ((text, 1), ("[there](other.md#other)", 0)):
        (source / "index.md").write_text(index.format(written), encoding="utf-8")
        done = build(source, tmp_path / f"{code}")
        assert done.returncode == code, done.stdout + done.stderr
