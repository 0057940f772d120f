"""report.md as readers of Markdown have it: CommonMark with GitHub's tables, rendered to HTML."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser

from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from phibuild.report.diff.making import NamedReport, make_difference
from phibuild.report.diff.markdown import difference_page
from phibuild.report.documents import Gate, Report
from phibuild.report.markdown import report_page
from phibuild.report.markdown_text import block, code, escape, row, table_head, visible
from support.report_cells import lost, some_cell, some_report

HOSTILE = "a|b`c`<script>alert(1)</script>*x*_y_[l](http://evil)\n# h &amp; @team \\| $x$ ~~z~~ ``"
MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


@dataclass
class Page(HTMLParser):
    """HTML as a browser has it: elements in the order of their starts, text, tables, text of the
    elements of a kind."""

    html: str
    tags: list[str] = field(default_factory=list)
    texts: dict[str, list[str]] = field(default_factory=dict)
    open: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.feed(self.html)
        self.close()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)
        self.open.append(tag)
        self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        for tag in set(self.open):
            self.texts[tag][-1] += data

    @property
    def tables(self) -> list[list[list[str]]]:
        """Rows of texts of each table."""
        found = []
        for table in re.findall(r"<table>.*?</table>", self.html, re.S):
            rows = re.findall(r"<tr>.*?</tr>", table, re.S)
            found.append([Page(one).texts.get("td") or Page(one).texts["th"] for one in rows])
        return found


def read(text: str) -> Page:
    page = Page(MARKDOWN.render(text))
    assert page.open == [], "elements that nothing closes"
    return page


ANY = st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.text(
    "|`*_<>&[]()\\#~$!@:-+=1.) \n\r\tawh/", max_size=20
)


@given(ANY)
@example(HOSTILE)
@example("1. one")
@example("- x")
@example("+")
@example("> q")
@example("a_b_c _d_")
@example("&lt;")
@example("http://a.b www.c.d")
@example("===")
@example("    indented")
@example("\u2028x")
@example("|---|")
def test_any_text_shows_as_it_is(text: str) -> None:
    """In a paragraph after a word, in an item of a list, in a table: the same text, no more."""
    shown, escaped = visible(text), escape(text)
    item = read(f"- {escaped}\n- end")
    assert [one.strip() for one in item.texts["li"]] == [shown, "end"]
    assert set(item.tags) <= {"ul", "li", "code"}
    table = read("\n".join([*table_head(["a", "b"]), row([escaped, "c"]), row(["d", "e"])]))
    assert table.tables == [[["a", "b"], [shown, "c"], ["d", "e"]]]
    assert set(table.tags) <= {"table", "thead", "tbody", "tr", "th", "td", "code"}
    assert set(read(f"x {escaped}").tags) <= {"p", "code"}


@given(ANY)
@example(HOSTILE)
@example("`")
@example("a\\")
@example("&amp;")
def test_any_name_is_code(name: str) -> None:
    shown = visible(name)
    page = read("\n".join([*table_head(["a", "b"]), row([code(name), "c"])]))
    assert page.tables == [[["a", "b"], [shown, "c"]]]
    item = read(f"- {code(name)}: x")
    assert item.texts["li"] == [f"{shown}: x"]
    if shown:
        assert item.texts["code"] == [shown]
        assert set(item.tags) == {"ul", "li", "code"}


@given(st.lists(ANY, max_size=6))
@example(["</pre>", "", "<script>", "  x"])
def test_any_log_is_a_block(lines: list[str]) -> None:
    text = "\n".join(lines)
    page = read("\n".join(["before", "", *block(text), "", "after"]))
    (pre,) = page.texts["pre"]
    assert pre.strip("\n") == "\n".join(
        "".join(c if c.isprintable() else "\ufffd" for c in line.expandtabs())
        for line in text.splitlines()
    ).strip("\n")
    assert page.tags == ["p", "pre", "p"]


def report() -> Report:
    gate = Gate(name="kl", limit=0.05, value=0.1, passed=False)
    return some_report(
        some_cell("phi.pi.llamacpp.int4", best=True),
        some_cell("phi.pi.llamacpp.int8", size_bytes=4_000_000, variant="Q8_0"),
        some_cell("phi.mac.mlx.int4", gates=[gate], variant="q4-g64"),
        lost("phi.mac.mlx.int8", "failed", "killed by SIGKILL\nline | one\n<b>two</b>"),
        lost("phi.mac.mlx.fp16", "skipped", "no | Metal"),
    )


def test_the_page() -> None:
    page = read(report_page(report()))
    assert page.texts["h1"] == ["mine"]
    assert page.texts["h2"] == ["What to ship", "What changed", "What failed", "Missed gates"]
    ship, cells = page.tables
    assert ship == [
        ["device", "ship", "size", "KL", "why"],
        ["pi", "llamacpp int4 Q4_0", "2.00 MB", "0.1000 ± 0.0071",
         "the smallest of 2 that fit the device"],
        ["mac", "nothing", "", "",
         "none can be shipped; mlx int4 q4-g64: kl 0.1 of at most 0.05 nats"],
    ]  # fmt: skip
    assert len(cells) == 1 + 4
    assert {len(one) for one in cells} == {11}
    assert cells[3][-1] == "built, misses kl"
    assert page.texts["summary"] == [
        "phi.mac.mlx.int8: the end of its log", "All 4 cells that were to be made", "1 skipped",
        "Where it comes from",
    ]  # fmt: skip
    assert page.texts["pre"] == ["\nline | one\n<b>two</b>\n"]
    assert "b" not in page.tags
    assert page.tags.count("details") == 4


def test_a_page_of_hostile_names_is_a_page() -> None:
    evil = f"phi{HOSTILE}".replace(".", "")
    cells = [
        some_cell(f"{evil}.{evil}.llamacpp.int4", variant=HOSTILE, notes=[HOSTILE]),
        lost(f"{evil}.{evil}.llamacpp.int8", "failed", HOSTILE),
        lost(f"{evil}.{evil}.llamacpp.fp16", "skipped", HOSTILE),
    ]
    before = some_report(cells[0], recipe=HOSTILE)
    after = some_report(*cells, recipe=HOSTILE, command=HOSTILE)
    plain = read(report_page(report(), NamedReport("2026", report())))
    page = read(report_page(after, NamedReport(HOSTILE, before)))
    assert set(page.tags) <= set(plain.tags) | {"li", "ul"}
    for tag in ("script", "a", "em", "s"):
        assert tag not in page.tags
    assert page.texts["h1"] == [visible(HOSTILE)]
    assert page.tables[0][1][0] == visible(evil)
    difference = make_difference(NamedReport(HOSTILE, before), NamedReport("b", after))
    tags = read(difference_page(difference)).tags
    assert {"script", "a", "em", "s"}.isdisjoint(tags)


def test_what_changed_since_the_run_before() -> None:
    before = some_report(
        some_cell("phi.pi.llamacpp.int4", size_bytes=1_000_000),
        some_cell("phi.pi.llamacpp.int8", size_bytes=4_000_000, variant="Q8_0"),
    )
    page = read(report_page(report(), NamedReport("2026-01-01_00-00-00", before)))
    assert page.texts["h2"][1] == "What changed since 2026-01-01_00-00-00"
    changed = page.tables[1]
    assert changed[0] == ["cell", "what", "size", "KL", "top-1", "decode"]
    by_cell = {one[0]: one for one in changed[1:]}
    assert by_cell["phi.pi.llamacpp.int4"][1:3] == ["larger", "2.00 MB (+100 %)"]
    assert by_cell["phi.mac.mlx.int8"][1] == "failed"
    assert "phi.pi.llamacpp.int8" not in by_cell
    assert next(iter(by_cell)) in ("phi.mac.mlx.int8", "phi.mac.mlx.int4")
    same = read(report_page(before, NamedReport("2026", before)))
    assert len(same.tables) == 2


def test_a_page_has_room_in_a_comment() -> None:
    """GitHub takes 65,536 characters: rows that do not fit are counted, the rest is there."""
    names = [f"phi.device_{n % 9}.llamacpp.int4.variant_{n}" for n in range(1000)]
    broken = "killed\n" + "\n".join(f"line {n} of a long log" for n in range(500))
    cells = [some_cell(name) if n % 3 else lost(name, "failed", broken)
             for n, name in enumerate(names)]  # fmt: skip
    text = report_page(some_report(*cells), NamedReport("2026", some_report(*cells[:10])))
    assert 40_000 < len(text.encode()) <= 65_536
    page = read(text)
    assert len(page.tables[0]) == 1 + 9
    assert re.search(r"\d+ more: report\.json has them", text)
    small = report_page(some_report(*cells), limit=20_000)
    assert len(small.encode()) <= 20_000
    read(small)
    large = report_page(some_report(*cells), limit=1 << 20)
    assert len(read(large).tables[1]) == 1 + 1000


def test_a_difference_is_a_page() -> None:
    a, b = report(), some_report(*(some_cell(f"phi.pi.llamacpp.int4.v{n}") for n in range(50)))
    text = difference_page(make_difference(NamedReport("x/1", a), NamedReport("x/2", b)))
    page = read(text)
    assert page.texts["h1"] == ["x/2 beside x/1"]
    assert sum(len(table) - 1 for table in page.tables) == 50 + 5
    assert page.texts["summary"] == ["35 cells more"]
