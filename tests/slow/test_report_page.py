"""report.html in a real browser: it filters, sorts, tells of what the pointer is over, follows
links to cells, prints, asks for nothing, and axe-core finds no fault in it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from phibuild.report.documents import Report
from phibuild.report.html import page as page_module
from phibuild.report.html.page import report_html
from support.browser import Scheme, chromium, started, visit
from support.faults import Site
from support.hostile import HOSTILE, hostile_report
from support.kinds import some
from support.made_reports import CELLS, made_report

pytestmark = pytest.mark.skipif(
    chromium() is None, reason="Chromium is not installed here (Debian: apt-get install chromium)"
)

expect.set_options(timeout=30_000)  # a busy machine is no failure


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with started() as one:
        yield one


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Report, Path]]:
    """Return reports and their pages: two devices, three, a thousand cells, hostile names."""
    folder = tmp_path_factory.mktemp("pages")
    made = {
        "two": made_report(2),
        "three": made_report(3),
        "thousand": made_report(1000 // CELLS),
        "hostile": hostile_report(),
    }
    found = {}
    for name, report in made.items():
        run = folder / name
        (run / "logs").mkdir(parents=True)
        for cell in report.cells:
            if cell.status == "failed" and "/" not in cell.id:
                said = f"\x1b[31mreading\x1b[0m\r50%\r100%\n<b>{cell.id}</b>\nKilled\n"
                (run / "logs" / f"{cell.id}.log").write_text(said, encoding="utf-8")
        path = run / "report.html"
        path.write_text(report_html(report, run), encoding="utf-8")
        found[name] = report, path
    return found


@pytest.fixture(scope="module")
def three(pages: dict[str, tuple[Report, Path]]) -> tuple[Report, Path]:
    return pages["three"]


def no_violations(page: Page) -> None:
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def table(page: Page) -> list[list[str]]:
    """Return what stands in the table of cells."""
    rows: list[list[str]] = page.locator("#table tbody").evaluate(
        "body => [...body.rows].map(row => [...row.cells].map(cell => cell.textContent.trim()))"
    )
    return rows


# -- what nobody may be kept from


@pytest.mark.parametrize(
    ("name", "scheme", "width"),
    some(
        [("three", "light", 1440), ("three", "dark", 390), ("thousand", "dark", 1440),
         ("hostile", "light", 390)],
        [("three", "dark", 390)],
    ),
)  # fmt: skip
def test_axe_finds_nothing(
    browser: Browser, pages: dict[str, tuple[Report, Path]], name: str, scheme: Scheme, width: int
) -> None:
    with visit(browser, pages[name][1], scheme=scheme, width=width) as one:
        assert one.draw_all() >= 6
        one.page.locator("details").evaluate_all(
            "all => all.slice(0, 12).forEach(one => { one.open = true; })"
        )
        no_violations(one.page)
        assert one.page.evaluate("document.documentElement.scrollWidth") <= width
        one.page.locator(".pick a").first.click()
        expect(one.page.locator("#panel dl").first).to_be_visible()
        no_violations(one.page)


@pytest.mark.parametrize("scheme", some(["light", "dark"], ["light"]))
def test_the_quickstart(browser: Browser, undisturbed: Site, scheme: Scheme) -> None:
    """As a build has left it."""
    run = undisturbed.folder / "outputs" / "quickstart" / "latest"
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    with visit(browser, run / "report.html", scheme=scheme) as one:
        devices = list(dict.fromkeys(cell["device"] for cell in report["cells"]))
        assert one.page.locator(".card h3").all_inner_texts() == devices
        assert one.draw_all() > len(devices)
        assert len(table(one.page)) == len(report["cells"])
        no_violations(one.page)


def test_the_keyboard_is_enough(browser: Browser, three: tuple[Report, Path]) -> None:
    with visit(browser, three[1]) as one:
        one.page.keyboard.press("Tab")
        assert one.page.evaluate("document.activeElement.className") == "skip"
        one.page.keyboard.press("Enter")
        one.page.keyboard.press("Tab")
        assert one.page.evaluate("document.activeElement.closest('.card') !== null")
        one.page.keyboard.press("Enter")
        panel = one.page.locator("#panel")
        expect(panel).to_be_visible()
        one.page.keyboard.press("Escape")
        expect(panel).to_be_hidden()
        one.page.locator(".grid").first.locator(".chip").last.focus()
        one.page.keyboard.press("Tab")
        expect(one.page.locator("#tip")).to_contain_text("device_001: ")
        one.page.keyboard.press("Escape")
        expect(one.page.locator("#tip")).to_be_hidden()
        one.page.locator("th[data-key=size] button").focus()
        one.page.keyboard.press("Enter")
        expect(one.page.locator("th[data-key=size]")).to_have_attribute("aria-sort", "ascending")


def test_without_scripts_all_figures_are_there(
    browser: Browser, pages: dict[str, tuple[Report, Path]]
) -> None:
    report, path = pages["two"]  # as many as a page shows before it is asked for more
    with visit(browser, path, scripts=False) as one:
        assert len(table(one.page)) == len(report.cells)
        expect(one.page.locator("#filters")).to_be_hidden()


# -- filter, sort, hover, follow


def test_filters(browser: Browser, three: tuple[Report, Path]) -> None:
    report, path = three
    wanted = [c for c in report.cells if c.backend == "openvino" and c.precision == "int4"]
    with visit(browser, path) as one:
        page = one.page
        one.draw_all()
        page.select_option("select[name=backend]", "openvino")
        page.select_option("select[name=precision]", "int4")
        assert [row[:2] for row in table(page)] == [[c.device, "openvino"] for c in wanted]
        assert page.inner_text("#matched") == f"{len(wanted)} of {len(report.cells)} cells"
        visible = page.locator(".chip:visible").count()
        assert visible == len(wanted)
        page.locator(".plot.tradeoff:visible details").first.evaluate("one => { one.open = true; }")
        shown = page.locator(".plot.tradeoff:visible tbody tr").all_inner_texts()
        first = next(c for c in wanted if c.quality)
        assert [text.split("\t")[0] for text in shown] == [first.id]
        points = page.locator(".plot.speed .canvas .mark-symbol.role-mark path")
        expect(points).to_have_count(sum(c.quality is not None for c in wanted))
        page.select_option("select[name=backend]", "")
        page.fill("input[name=text]", "device_002")
        assert {row[0] for row in table(page)} == {"device_002"}
        assert page.locator(".card:visible").count() == 1
        # As a link that can be sent.
        assert page.url.endswith("#precision=int4&text=device_002")
        again = page.url.partition("#")[2]
        before = table(page)
    with visit(browser, path, fragment=f"#{again}") as one:
        assert table(one.page) == before
        one.page.click("button[type=reset]")
        expect(one.page.locator("#matched")).to_have_text(
            f"{len(report.cells)} of {len(report.cells)} cells"
        )


def test_a_filter_without_cells_says_so(browser: Browser, three: tuple[Report, Path]) -> None:
    with visit(browser, three[1]) as one:
        one.page.fill("input[name=text]", "no such thing")
        assert table(one.page) == []
        assert one.page.inner_text("#more-rows") == "No cell matches."


def test_sorting(browser: Browser, pages: dict[str, tuple[Report, Path]]) -> None:
    """By figures and not by their texts; what has none is last, both ways."""
    report, path = pages["thousand"]
    sizes = sorted(c.size_bytes for c in report.cells if c.size_bytes is not None)
    losses = sorted((c.quality.kl_mean for c in report.cells if c.quality), reverse=True)
    with visit(browser, path) as one:
        page = one.page
        one.draw_all()  # a plot that is drawn meanwhile moves the table from under the pointer
        header = page.locator("th[data-key=size]")
        header.locator("button").click()
        expect(header).to_have_attribute("aria-sort", "ascending")
        shown = [float(row[4].split()[0]) for row in table(page)]
        assert shown == [pytest.approx(size / 1e9, rel=0.005) for size in sizes[: len(shown)]]
        page.locator("th[data-key=kl] button").click()
        page.locator("th[data-key=kl] button").click()
        expect(page.locator("th[aria-sort]")).to_have_count(1)
        expect(page.locator("th[data-key=kl]")).to_have_attribute("aria-sort", "descending")
        shown = [float(row[7].split()[0]) for row in table(page)]
        assert shown == [pytest.approx(loss, abs=6e-5) for loss in losses[: len(shown)]]
        assert len(shown) == 100
        page.get_by_role("button", name="Show all").click()
        rows = table(page)
        assert len(rows) == len(report.cells)
        without = sum(cell.quality is None for cell in report.cells)
        assert without > 10
        assert {row[7] for row in rows[-without:]} == {"-"}
        assert "-" not in {row[7] for row in rows[:-without]}


def test_hovering_tells_of_a_cell(browser: Browser, three: tuple[Report, Path]) -> None:
    report, path = three
    with visit(browser, path) as one:
        page, tip = one.page, one.page.locator("#tip")
        chip = page.locator(".chip.gate").first
        cell = report.cells[int(chip.get_attribute("data-cell") or -1)]
        chip.hover()
        expect(tip).to_contain_text(f"{cell.device}: {cell.backend} int")
        expect(tip).to_contain_text("misses a gate: kl")
        page.mouse.move(2, 2)
        expect(tip).to_be_hidden()
        one.draw_all()
        point = page.locator(".plot.tradeoff .canvas .mark-symbol.role-mark path").first
        point.scroll_into_view_if_needed()
        box = point.bounding_box()
        assert box
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.move(x - 60, y - 30)
        page.mouse.move(x, y, steps=4)
        expect(tip).to_contain_text("device_000: ")
        expect(tip).to_contain_text("KL")
        page.mouse.click(x, y)
        expect(page.locator("#panel")).to_be_visible()
        assert "#cell=phi-4-mini.device_000." in page.url


def test_links_to_cells(browser: Browser, three: tuple[Report, Path]) -> None:
    report, path = three
    cell = next(c for c in report.cells if c.quality and c.provenance)
    assert cell.provenance
    with visit(browser, path, fragment=f"#cell={cell.id}") as one:
        page, panel = one.page, one.page.locator("#panel")
        expect(panel).to_contain_text(cell.id)
        expect(panel).to_contain_text(cell.provenance.key)
        expect(panel).to_contain_text(f"{cell.size_bytes:,} bytes")
        panel.get_by_role("button", name="Close").click()
        expect(panel).to_be_hidden()
        assert "#" not in page.url
        page.select_option("select[name=backend]", "mlx")
        page.locator(".chip:visible").first.click()
        expect(panel).to_contain_text(".mlx.")
        page.go_back()
        expect(panel).to_be_hidden()
        assert page.url.endswith("#backend=mlx")
        assert {row[1] for row in table(page)} == {"mlx"}
        page.go_forward()
        expect(panel).to_contain_text(".mlx.")
        page.keyboard.press("Escape")
        expect(panel).to_be_hidden()
        expect(page).to_have_url(f"{path.resolve().as_uri()}#backend=mlx")
    with visit(browser, path, fragment="#cell=gone.cell") as one:
        expect(one.page.locator("#panel")).to_contain_text("No such cell")


# -- plots


def test_plots_show_what_the_report_says(browser: Browser, three: tuple[Report, Path]) -> None:
    report, path = three
    judged = [c for c in report.cells if c.device == "device_000" and c.quality]
    one_of = report.sensitivities[0]
    with visit(browser, path) as one:
        page = one.page
        shown = page.locator(".plot:not([hidden])").count()
        assert one.draw_all() == shown
        plot = page.locator(".plot.tradeoff").first
        expect(plot.locator(".canvas .mark-symbol.role-mark path")).to_have_count(len(judged))
        plot.locator("summary").click()
        expect(plot.locator("tbody tr")).to_have_count(len(judged))  # they come once it is open
        rows: list[list[str]] = plot.locator("tbody").evaluate(
            "body => [...body.rows].map(row => [...row.cells].map(cell => cell.textContent))"
        )
        assert {row[0] for row in rows} == {cell.id for cell in judged}
        for row in rows:
            cell = next(c for c in judged if c.id == row[0])
            assert cell.quality
            size = (cell.size_bytes or 0) / 1e9
            assert float(row[1].split()[0]) == pytest.approx(size, rel=0.005)
            assert row[3].startswith("<" if not cell.quality.kl_mean else row[3][0])
        layers = page.locator(".plot.layers")
        layers.locator("summary").click()
        expect(layers.locator("tbody tr")).to_have_count(len(one_of.losses) - 1)
        first = layers.locator("tbody tr").first.inner_text().split("\t")
        loss = one_of.losses["model.layers.0.self_attn.qkv_proj.weight"]
        assert first == ["0", "qkv_proj", f"{loss.kl:.5f}", f"{loss.kl_error:.5f}"]
        expect(layers).to_contain_text("lm_head 0.00400 ± 0.00020")
        steps = page.locator(".plot.steps .canvas .mark-rect.role-mark path")
        expect(steps).to_have_count(len(report.steps))
        for canvas in page.locator(".canvas[role=img]").all():
            assert len(canvas.get_attribute("aria-label") or "") > 40


def test_plots_place_their_points_by_the_figures(
    browser: Browser, three: tuple[Report, Path]
) -> None:
    """Farther right is larger, higher up loses more, as far as the axis goes."""
    report, path = three
    judged = {
        c.id: (c.size_bytes, c.quality.kl_mean)
        for c in report.cells
        if c.device == "device_001" and c.quality
    }
    with visit(browser, path) as one:
        one.draw_all()
        points: list[list[Any]] = (
            one.page.locator(".plot.tradeoff")
            .nth(1)
            .evaluate(
                """plot => [...plot.querySelectorAll('.mark-symbol.role-mark path')].map(path => {
                const {x, y, width, height} = path.getBoundingClientRect();
                return [path.__data__.datum.id, x + width / 2, y + height / 2];
            })"""
            )
        )
    assert {name for name, _, _ in points} == set(judged)
    by_size = sorted(points, key=lambda point: point[1])
    sizes = [judged[name][0] for name, _, _ in by_size]
    assert sizes == sorted(sizes, key=lambda size: size or 0)
    lossy = [point for point in points if judged[point[0]][1] > 1e-4]
    by_loss = sorted(lossy, key=lambda point: -point[2])
    losses = [judged[name][1] for name, _, _ in by_loss]
    assert losses == sorted(losses)


def test_printing_draws_what_was_not_in_view(browser: Browser, three: tuple[Report, Path]) -> None:
    with visit(browser, three[1], scheme="dark") as one:
        one.page.wait_for_function("typeof vegaEmbed === 'function'")
        shown = one.page.locator(".plot:not([hidden])").count()
        assert one.page.locator(".canvas svg").count() < shown
        pdf = one.page.pdf(prefer_css_page_size=True)
        assert pdf.startswith(b"%PDF")
        assert one.page.locator(".canvas svg").count() == shown
        one.page.emulate_media(media="print", color_scheme="dark")
        assert one.page.evaluate("getComputedStyle(document.body).backgroundColor") == (
            "rgb(255, 255, 255)"
        )
        expect(one.page.locator("#filters")).to_be_hidden()


def test_a_page_without_the_plots_script(
    browser: Browser, three: tuple[Report, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_module, "plot_script", lambda: None)
    path = tmp_path / "report.html"
    path.write_text(report_html(three[0]), encoding="utf-8")
    with visit(browser, path) as one:
        expect(one.page.locator("main .warning").first).to_contain_text("vl-convert-python")
        plot = one.page.locator(".plot").first
        plot.scroll_into_view_if_needed()
        expect(plot.locator(".canvas")).to_contain_text("Not drawn")
        plot.locator("summary").click()
        expect(plot.locator("tbody tr").nth(5)).to_be_attached()
        no_violations(one.page)


# -- what went wrong, and who means harm


def test_failures_are_told_with_the_end_of_their_log(
    browser: Browser, pages: dict[str, tuple[Report, Path]]
) -> None:
    report, path = pages["thousand"]
    failed = [cell for cell in report.cells if cell.status == "failed"]
    assert len(failed) > 5
    with visit(browser, path) as one:
        section = one.page.locator("#failed")
        expect(section.locator("article")).to_have_count(1)  # one reason
        expect(section).to_contain_text("the runner was killed by SIGKILL (out of memory?)")
        expect(section).to_contain_text(f"{len(failed) - 1} more for the same reason")
        log = section.locator("details pre").inner_text()
        assert log == f"100%\n<b>{failed[0].id}</b>\nKilled"
        expect(one.page.locator("header.page")).to_contain_text(f"{len(failed)} failed")


def test_names_are_text_whatever_they_say(
    browser: Browser, pages: dict[str, tuple[Report, Path]]
) -> None:
    """No markup, no script, no template, in the page, its plots, their data and what hovers."""
    report, path = pages["hostile"]
    with visit(browser, path) as one:
        page = one.page
        one.draw_all()
        for name in ("device", "backend"):
            options = page.locator(f"select[name={name}] option").all_inner_texts()
            assert set(HOSTILE) & set(options), name
        assert page.locator("b.injected, img, iframe, object").count() == 0
        assert page.locator("script").count() == 4 + 1  # its own, and the plots'
        page.locator("details").evaluate_all("all => all.forEach(one => { one.open = true; })")
        for chip in page.locator(".chip:visible").all()[:6]:
            chip.scroll_into_view_if_needed()
            page.wait_for_timeout(200)  # scrolling hides what hovers, when the frame is drawn
            chip.hover()
            expect(page.locator("#tip")).to_be_visible()
        point = page.locator(".plot.tradeoff .canvas .mark-symbol.role-mark path").first
        point.hover(force=True)
        page.locator(".pick a").first.click()
        expect(page.locator("#panel")).to_contain_text("<script>alert(1)</script>")
        page.keyboard.press("Escape")
        texts = page.locator(".plot .canvas text").all_text_contents()
        assert any("<" in text for text in texts), texts[:20]
        cell = report.cells[0]
        page.evaluate("name => { location.hash = `cell=${encodeURIComponent(name)}`; }", cell.id)
        expect(page.locator("#panel .id")).to_have_text(cell.id)
