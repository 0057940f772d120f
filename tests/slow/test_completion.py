"""Completion in real bash, zsh and fish: what a Tab makes of a line, and how long it takes."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pytest

from unit.test_bad_input import DEVICE

BIN = Path(sys.executable).parent
SHELLS = {
    "bash": (["--norc", "--noprofile", "-i"], 'eval "$(phibuild completion bash)"'),
    "zsh": (
        ["-f", "-i"],
        'bindkey -e; autoload -Uz compinit; compinit -u; eval "$(phibuild completion zsh)"',
    ),
    "fish": (["--no-config", "--interactive"], "phibuild completion fish | source"),
}
PROMPTS = {"bash": "PS1='READY> '", "zsh": "PS1='READY> '",
           "fish": "function fish_prompt; echo -n 'READY> '; end"}  # fmt: skip
_WAIT = 60
"""Seconds: other tests may have the cores."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with recipes and a device of its own, and a run."""
    for name, text in {
        "recipes/kiosk_release.yaml": "devices: {our_kiosk: {llamacpp: [int4]}}\n",
        "recipes/two words.yaml": "devices: {our_kiosk: {llamacpp: [int4]}}\n",
        "conf/device/our_kiosk.yaml": DEVICE,
        "elsewhere/recipes/other_release.yaml": "devices: {mac: {mlx: [int4]}}\n",
        "outputs/kiosk_release/latest/logs/phi-4.our_kiosk.llamacpp.int4.log": "",
        "outputs/kiosk_release/latest/logs/executor.log": "",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.fixture(params=SHELLS)
def tab(request: pytest.FixtureRequest, folder: Path) -> Iterator[Callable[[str], str]]:
    """Return (line) -> the line after a Tab at its end, in a real shell at a terminal."""
    name: str = request.param
    program = shutil.which(name)
    if program is None:
        pytest.skip(f"{name} is not installed: apt-get install {name}")
    words, setup = SHELLS[name]
    environ = {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(folder),
        "TERM": "dumb" if name != "fish" else "xterm",
        "LC_ALL": "C.UTF-8",
    }
    shell = pexpect.spawn(
        program, words, cwd=str(folder), env=environ,
        encoding="utf-8", timeout=_WAIT, dimensions=(50, 500),
    )  # fmt: skip
    shell.sendline(PROMPTS[name])
    shell.expect("READY> ")
    shell.sendline(f"{setup}; echo set''up")
    shell.expect("setup\r?\n")

    def complete(line: str) -> str:
        # What stands on the line afterwards is printed by `echo`, put before it.
        shell.send(f"{line}\t")
        time.sleep(0.5)
        asked = time.monotonic() + _WAIT
        while time.monotonic() < asked and not _idle(shell.pid):
            time.sleep(0.1)
        shell.send("\x01echo '<'\x05'>'\r")
        shell.expect(r"(?:^|\n|\r)< ?(phibuild[^\r\n]*?)>\r?\n")
        match = shell.match
        assert isinstance(match, re.Match)
        return str(match[1])

    yield complete
    shell.close(force=True)


def _idle(pid: int | None) -> bool:
    """Say whether a shell has no process below it any more."""
    done = subprocess.run(["ps", "--ppid", str(pid), "-o", "pid="], capture_output=True, text=True)
    return not done.stdout.strip()


CASES = {
    "phibuild pl": "phibuild plan ",
    "phibuild kio": "phibuild kio",
    "phibuild plan rec": "phibuild plan recipe=",
    "phibuild plan recipe=kio": "phibuild plan recipe=kiosk_release ",
    "phibuild plan device=our": "phibuild plan device=our_kiosk ",
    "phibuild plan recipe=iot evaluation=sta": "phibuild plan recipe=iot evaluation=standard ",
    "phibuild plan evaluation.ada": "phibuild plan evaluation.adaptive=",
    "phibuild plan evaluation.adaptive=f": "phibuild plan evaluation.adaptive=false ",
    "phibuild -m precision=int4,fp3": "phibuild -m precision=int4,fp32 ",
    "phibuild plan --stri": "phibuild plan --strict ",
    "phibuild plan backends.llamacpp.int8.ty": "phibuild plan backends.llamacpp.int8.type=",
    "phibuild plan devices.our_k": "phibuild plan devices.our_kiosk.",
    "phibuild plan --config-dir elsewhere recipe=oth":
        "phibuild plan --config-dir elsewhere recipe=other_release ",
    "phibuild show device our": "phibuild show device our_kiosk ",
    "phibuild run phi-4.": "phibuild run phi-4.our_kiosk.llamacpp.int4 ",
    "phibuild report ki": "phibuild report kiosk_release ",
    "phibuild check rec": "phibuild check recipes/",
    "phibuild plan model=./els": "phibuild plan model=./elsewhere/",
}  # fmt: skip


def test_a_tab_in_a_real_shell(tab: Callable[[str], str]) -> None:
    found = {line: tab(line).rstrip() for line in CASES}
    assert found == {line: whole.rstrip() for line, whole in CASES.items()}


def test_a_name_with_a_space_is_one_word(tab: Callable[[str], str]) -> None:
    """`echo` has taken the quotes away; two words would have been a mistake of the shell."""
    assert tab("phibuild plan recipe=two").rstrip() == "phibuild plan recipe=two words"


LINES = ["phibuild ", "phibuild plan ", "phibuild plan recipe=",
         "phibuild plan devices.our_kiosk.llamacpp.int4.type="]  # fmt: skip


@pytest.mark.parametrize("line", LINES)
def test_a_tab_takes_less_than_a_fifth_of_a_second(line: str, folder: Path) -> None:
    """The best of several: of the processor, and of the clock, by which a machine that others load
    is so much slower."""
    environ = {
        **os.environ, "_ARGCOMPLETE": "1", "_ARGCOMPLETE_SHELL": "bash", "COMP_LINE": line,
        "COMP_POINT": str(len(line)), "_ARGCOMPLETE_STDOUT_FILENAME": str(folder / "answer"),
    }  # fmt: skip
    walls, cpus = [], []
    for _ in range(10):
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        subprocess.run([str(BIN / "phibuild")], cwd=folder, env=environ, check=True)
        walls.append(time.monotonic() - started)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpus.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert (folder / "answer").read_text().strip()
    print(f"{line!r}: {min(walls):.3f} s, {min(cpus):.3f} s of the processor")
    assert min(cpus) < 0.2
    assert min(walls) < 0.2 * max(1, os.getloadavg()[0] / (os.cpu_count() or 1))


def test_nothing_heavy_is_imported() -> None:
    """pydantic alone would take the whole time."""
    code = "import sys, phibuild.cli, phibuild.commands.completing; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = set(done.stdout.split())
    assert (
        modules & {"pydantic", "yaml", "hydra", "omegaconf", "numpy", "rich", "tabulate"} == set()
    )
