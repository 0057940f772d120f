"""The commands of README and docs: found in their fences, and run as a reader would.

A page is a story: its commands run in their order, in one scratch folder. A YAML block whose first
line is a comment with a path (`# recipes/ours.yaml`) is the file of that name there. A line that is
a command of phibuild's and nothing that a shell has a say in is run in a warm Python (warm.py); all
others by bash.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

from support import warm

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[\w-]*)[^\n]*\n(?P<text>.*?)^(?P=indent)```",
                    re.MULTILINE | re.DOTALL)  # fmt: skip
_SHELLS = ("sh", "bash", "shell", "console")
_FILE = re.compile(r"#\s*((?:recipes|conf/\w+|device)/[\w.-]+\.yaml)\b")
_QUICK = {"plan", "list", "doctor", "schema", "store", "check", "show", "completion", "init"}
"""Verbs that build nothing."""
EXAMPLE = ROOT / "examples" / "phibuild-numpy"
_QUOTED = re.compile(r"""'[^']*'|"[^"$`\\]*\"""")
_SHELL = re.compile(r"[]|&;<>$`*?[{}()~\\!]")
"""What a shell takes for more than a letter, outside of quotes."""
_EMBEDDED = ROOT / "phibuild" / "data" / "phi3-tiny-trained"


@dataclass(frozen=True)
class Command:
    """A command as a page has it, and where it stands."""

    page: Path
    line: int
    text: str

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text, comments=True)

    @property
    def is_plain(self) -> bool:
        """Whether a shell would run phibuild with these words and do nothing else, and this
        environment has all that it needs."""
        text = _QUOTED.sub("", self.text).partition(" #")[0]
        own = str(EXAMPLE.relative_to(ROOT)) not in self.page.read_text(encoding="utf-8")
        return self.words[:1] == ["phibuild"] and not _SHELL.search(text) and own

    @property
    def is_quick(self) -> bool:
        """Whether it is a verb of phibuild that needs no build, before it or of its own."""
        match self.words:
            case ["phibuild", verb, *_] if verb in _QUICK or verb.startswith("--"):
                return not set(self.words) & {"|", "&&", "||", ";"}
        return "--help" in self.words


def blocks(page: Path) -> list[tuple[int, str, str]]:
    """Return (first line, language, text) of every fenced block of a page."""
    text = page.read_text(encoding="utf-8")
    return [
        (text.count("\n", 0, found.start("text")) + 1, found["language"], found["text"])
        for found in _FENCE.finditer(text)
    ]


def commands(page: Path) -> list[Command]:
    """Return a page's commands in their order. Of a console's lines those after `$ ` count; lines
    that end in a backslash go on."""
    found = []
    for first, language, text in blocks(page):
        if language not in _SHELLS:
            continue
        whole, start = "", first
        for number, line in enumerate(text.splitlines(), first):
            if not whole:
                start = number
                if language == "console":
                    if not line.startswith("$ "):
                        continue
                    line = line[2:]
            whole += line.strip()
            if whole.endswith("\\"):
                whole = whole[:-1]
                continue
            if whole and not whole.startswith("#"):
                found.append(Command(page, start, whole))
            whole = ""
    return found


def files(page: Path) -> dict[str, str]:
    """Return path -> text of the files that a page's YAML blocks show."""
    found = {}
    for _, language, text in blocks(page):
        match = _FILE.match(text)
        if language == "yaml" and match:
            found[match[1]] = text
    return found


@dataclass(frozen=True)
class Scratch:
    """A folder to work in, as the pages suppose: a checkpoint, a text, the page's own files."""

    folder: Path
    store: Path

    def prepare(self, page: Path) -> None:
        """Put there what a page's commands name."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in ("my-phi", "mine"):
            if not (self.folder / name).exists():
                shutil.copytree(_EMBEDDED, self.folder / name)
        for name in ("examples", "benchmarks"):
            if not (self.folder / name).exists():
                (self.folder / name).symlink_to(ROOT / name)
        kiosk = self.folder / "conf" / "device" / "our_kiosk.yaml"
        kiosk.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "conf" / "device" / "raspberry_pi_5.yaml", kiosk)
        # Of the project's own prose: nothing that anybody calibrates on.
        texts = [path.read_text(encoding="utf-8") for path in PAGES]
        (self.folder / "our-texts.txt").write_text("\n".join(texts), encoding="utf-8")
        for name, text in files(page).items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")

    def run(self, command: Command, timeout: float = 900) -> subprocess.CompletedProcess[str]:
        """Run a line; `phibuild` and `python` are those of this environment, in which the example's
        package is installed too where the page has it."""
        if command.is_plain:
            return warm.run(
                [sys.executable, "-m", *command.words], cwd=self.folder, timeout=timeout,
                env={**os.environ, "PHIBUILD_STORE": str(self.store)},
            )  # fmt: skip
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        modules = [str(self._example()), str(EXAMPLE), os.environ.get("PYTHONPATH", "")]
        return subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", command.text],
            cwd=self.folder,
            env={
                **os.environ, "PATH": path, "PHIBUILD_STORE": str(self.store),
                "PYTHONPATH": os.pathsep.join(filter(None, modules)),
            },
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )  # fmt: skip

    def _example(self) -> Path:
        """Return a folder that says what `pip install examples/phibuild-numpy` would."""
        folder = self.folder.parent / "example"
        data = tomllib.loads((EXAMPLE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        about = folder / f"{data['name'].replace('-', '_')}-{data['version']}.dist-info"
        about.mkdir(parents=True, exist_ok=True)
        text = f"Metadata-Version: 2.1\nName: {data['name']}\nVersion: {data['version']}\n"
        (about / "METADATA").write_text(text, encoding="utf-8")
        ((group, points),) = data["entry-points"].items()
        lines = [f"[{group}]", *(f"{name} = {module}" for name, module in points.items())]
        (about / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
        return folder


def failed(command: Command, done: subprocess.CompletedProcess[str]) -> str:
    """Return what to say of a command that did not end with 0."""
    said = (done.stdout + done.stderr)[-3000:]
    return f"{command.where}: `{command.text}` ended with {done.returncode}:\n{said}"
