"""The pages of README and docs: their commands work, what is made from the code is current, and
what they say of variants is what was measured."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from phibuild.backends.registry import SHIPPED, backend
from phibuild.cli import _read_verb
from phibuild.errors import PhibuildError
from phibuild.planning.unused import NEEDS as UNUSED
from phibuild.units import format_decimal
from support.lent import Pool
from support.page_commands import (
    PAGES,
    ROOT,
    Command,
    Scratch,
    blocks,
    commands,
    failed,
    files,
)
from support.page_excuses import EXCUSES, excuse, runnable

DOCS = ROOT / "docs"
COMMANDS = [command for page in PAGES for command in commands(page)]
MADE = ("cli.md", "contracts.md")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture
def scratch(tmp_path: Path, pool: Path) -> Scratch:
    Pool(pool, originals=False).lend(tmp_path / "store")
    return Scratch(tmp_path / "work", tmp_path / "store")


def quick(page: Path) -> list[Command]:
    found = (runnable(command) for command in commands(page))
    return [command for command in found if command and command.is_quick]


@pytest.mark.parametrize("page", [page for page in PAGES if quick(page)], ids=name)
def test_commands_that_build_nothing(page: Path, scratch: Scratch) -> None:
    """The others are run by tests/slow/test_page_commands.py."""
    scratch.prepare(page)
    for command in quick(page):
        done = scratch.run(command, 300)
        assert done.returncode == 0, failed(command, done)


@pytest.mark.parametrize("page", [page for page in PAGES if files(page)], ids=name)
def test_recipes_that_are_shown_can_be_planned(page: Path, scratch: Scratch) -> None:
    scratch.prepare(page)
    for path in files(page):
        if path.startswith("recipes/"):
            command = Command(page, 0, f"phibuild plan recipe={Path(path).stem}")
            done = scratch.run(command, 300)
            assert done.returncode == 0, failed(command, done)


def test_every_excuse_is_needed_and_its_reason_holds() -> None:
    used = {found.text for command in COMMANDS if (found := excuse(command))}
    assert used == {one.text for one in EXCUSES}
    for command in COMMANDS:
        if found := excuse(command):
            assert found.reason.holds(command.words), command.where
    assert len(EXCUSES) <= len(COMMANDS) / 4


def test_no_command_hides_in_another_block() -> None:
    for page in PAGES:
        for line, language, text in blocks(page):
            if language not in ("sh", "bash", "shell", "console") and page.name not in MADE:
                hidden = re.findall(r"^(?:\$ |phibuild ).*", text, re.MULTILINE)
                assert hidden == [], f"{page}:{line}"


def misread(words: list[str]) -> str | None:
    """Return what the parser has against a command's words; None if nothing."""
    _, parser, rest = _read_verb(words)
    try:
        if "--help" not in rest:
            parser.parse_intermixed_args(rest)
    except PhibuildError as error:
        return str(error)
    return None


def test_commands_within_sentences_have_words_that_exist() -> None:
    """They are read by the parsers, as far as they are no patterns."""
    seen = 0
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for said in re.findall(r"(?<!`)`(phibuild [^`\n]+)`(?!`)", text):
            if page.name in MADE or re.search(r"[|\[\]{}]|\.\.\.|VERB", said):
                continue
            seen += 1
            words = Command(page, 0, said).words[1:]
            if words != ["--help"]:
                problem = misread(words)
                # A sentence may name the verb alone.
                assert "arguments are required" in (problem or "arguments are required"), said
    assert seen > 20


def test_a_command_that_fails_fails_its_page(scratch: Scratch, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "Text\n\n```console\n$ phibuild list devices\nraspberry_pi_5\n$ phibuild plan \\\n"
        "    recipe=nowhere   # a comment\n```\n\n```yaml\n# recipes/own.yaml\n"
        "devices: {mac: {mlx: [int4]}}\n```\n```sh\nphibuild plan recipe=own\n"
        "phibuild list devices | grep no-such-device\nfalse && true\n```\n",
        encoding="utf-8",
    )
    found = commands(page)
    assert [(command.line, command.words) for command in found] == [
        (4, ["phibuild", "list", "devices"]),
        (6, ["phibuild", "plan", "recipe=nowhere"]),
        (15, ["phibuild", "plan", "recipe=own"]),
        (16, ["phibuild", "list", "devices", "|", "grep", "no-such-device"]),
        (17, ["false", "&&", "true"]),
    ]
    scratch.prepare(page)
    codes = [scratch.run(command).returncode for command in found]
    assert codes == [0, 2, 0, 1, 1]
    assert [command.is_quick for command in found] == [True, True, True, False, False]
    assert [command.is_plain for command in found] == [True, True, True, False, False]


@pytest.mark.parametrize(
    ("text", "is_plain"),
    [
        ("phibuild plan --only '*.openvino.*' 'precision=glob(int*)'   # a comment", True),
        ('phibuild run a.b.int4 "Why?"', True),
        ('phibuild run a.b.int4 "$WHY"', False),
        ("phibuild plan 'a' *.yaml", False),
        ("phibuild plan > plan.txt", False),
        ("phibuild build recipe=first || test $? -eq 3", False),
        ("PHIBUILD_TOOLCHAINS=./none phibuild toolchain list", False),
        ("python3 -m venv --help", False),
    ],
)
def test_what_needs_a_shell(text: str, is_plain: bool, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    assert Command(page, 1, text).is_plain is is_plain
    page.write_text("see examples/phibuild-numpy", encoding="utf-8")
    assert not Command(page, 1, text).is_plain


def test_pages_made_from_the_code_are_current() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "pages.py", "--check"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}{done.stderr}'python tools/pages.py' makes them"


def rows(page: Path) -> list[list[str]]:
    lines = page.read_text(encoding="utf-8").splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")]
            for line in lines if line.startswith("|")]  # fmt: skip


@pytest.mark.parametrize("backend", SHIPPED)
def test_figures_of_variants_are_those_that_were_measured(backend: str) -> None:
    measured = {(row[0], row[2]): row for row in rows(DOCS / "variants.md")}
    page = DOCS / "backends" / f"{backend}.md"
    table = [row for row in rows(page) if (backend, row[0]) in measured]
    assert len(table) > 4
    for variant, _, size, kl, seconds in table:
        found = measured[backend, variant]
        assert [size, kl, seconds] == [found[3], found[5], found[9]], variant
    text = page.read_text(encoding="utf-8")
    assert f"<!-- variants: {backend} -->" in text
    after = text.partition("<!-- variants:")[2].partition("\n\n")[0]
    assert after.count("\n|") == len(table) + 2


@pytest.mark.parametrize("name", SHIPPED)
def test_pages_of_backends_say_what_plans_say(name: str) -> None:
    """How large the toolchain is, and what accelerators that nothing is made for would take."""
    spec = backend(name)
    text = (DOCS / "backends" / f"{name}.md").read_text(encoding="utf-8")
    assert re.findall(r"Toolchain: ([\d.]+ [MG]B)", text) == [format_decimal(spec.toolchain_bytes)]
    if name == "coreai":
        needs, _, _ = UNUSED["neural_engine"].partition(":")
        assert needs in text


def test_the_readme_has_the_toolchains_sizes_and_the_formats_that_the_site_has() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    sizes = {name: backend(name).toolchain_bytes for name in SHIPPED}
    assert f"all nine backends take {sum(sizes.values()) / 1e9:.1f} GB" in readme
    assert f"every original, {(sizes['llamacpp'] + sizes['pytorch']) / 1e9:.1f} GB" in readme
    formats = re.search(r"build matrix \(([^;]+);", readme)
    assert formats
    site = (DOCS / "index.md").read_text(encoding="utf-8")
    for name in formats[1].split(", "):
        assert f"{name}," in site or f"{name} " in site, name


_SHOWN = re.compile(
    rf"({'|'.join(SHIPPED)}| {{4}}) +(?:int\d )?(\S+)(?: \*)? +([\d.]+) MB +([\d.e-]+) ± ([\d.e-]+)"
)
"""A row of a report in a terminal: backend (or none), variant, size, KL and its error."""
_CONTEXTS = {"executorch": 2 * 4 * 32 * (4096 - 2048) / 1e6}
"""MB by which an artifact of the table is larger, whose device has a longer context: what the
program holds of it, fp32 tables of cos and sin of the embedded model's head size."""


def test_figures_of_the_readme_are_those_that_were_measured() -> None:
    """Sizes are equal; a loss, of fewer windows, is within 4 errors."""
    measured = {(row[0], row[2]): row for row in rows(DOCS / "variants.md")}
    backend = ""
    seen = 0
    for named, variant, size, kl, error in _SHOWN.findall((ROOT / "README.md").read_text("utf-8")):
        backend = named.strip() or backend
        if (backend, variant) not in measured:
            continue
        row = measured[backend, variant]
        expected = float(row[3]) - _CONTEXTS.get(backend, 0)
        assert float(size) == pytest.approx(expected, abs=0.06 if expected > 10 else 0.011), variant
        whole, whole_error = (float(text) for text in row[5].split(" ± "))
        assert abs(float(kl) - whole) <= 4 * (float(error) ** 2 + whole_error**2) ** 0.5, variant
        seen += 1
    assert seen > 10
