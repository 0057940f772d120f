"""Commands of README and docs that no test can run here, each with its reason.

A reason holds only for commands that show it themselves, so that none is excused for another's.
What can be asked of such a command without doing it is asked: `instead` is run in its place.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass

from support.page_commands import Command


@dataclass(frozen=True)
class Reason:
    """Why a command is not run; `holds` says of its words whether it can be the reason."""

    text: str
    holds: Callable[[list[str]], bool]


INSTALLS = Reason(
    "it makes the environment that the tests run in, or another in its place",
    lambda words: words[0] in ("make", "pip", "python3", "."),
)
HUB = Reason(
    "it downloads a model of several gigabytes from the Hub",
    lambda words: any(
        word == "recipe=edge_release" or (word.startswith("model=") and "./" not in word)
        for word in words
    ),
)
CLUSTER = Reason(
    "it needs a Slurm cluster; tests/slow/test_slurm.py starts one and builds there",
    lambda words: "executor=slurm" in words,
)
INDEX = Reason(
    "it resolves versions by a package index; tests/unit/test_lock.py does it with one of its own",
    lambda words: words[:3] == ["uv", "pip", "compile"],
)
SHARED = Reason(
    "it removes environments that other tests may be using",
    lambda words: words[:3] == ["phibuild", "toolchain", "remove"],
)
HOURS = Reason(
    "it takes an hour, and other vendors' packages; tests/slow/test_benchmarks.py runs it small",
    lambda words: words[0] == "python" and words[1].startswith("benchmarks/"),
)
SHELL = Reason(
    "it is another shell's; tests/slow/test_completion.py has that shell run it",
    lambda words: any(f"completion {name}" in " ".join(words) for name in ("zsh", "fish")),
)
BROWSER = Reason(
    "it opens a browser; tests/slow/test_report_page.py looks at the page in one",
    lambda words: words[:2] == ["phibuild", "report"] and "--open" in words,
)


@dataclass(frozen=True)
class Excuse:
    """A command that is not run, why, and what runs in its place, if anything can."""

    text: str
    reason: Reason
    instead: str | None = None


EXCUSES = (
    Excuse('eval "$(phibuild completion zsh)"', SHELL, "phibuild completion zsh"),
    Excuse("phibuild completion fish | source", SHELL, "phibuild completion fish"),
    Excuse("phibuild report --open", BROWSER, "phibuild report --html page.html"),
    Excuse("make demo", INSTALLS, "phibuild build recipe=quickstart"),
    Excuse("make test", INSTALLS),
    Excuse("pip install -e .", INSTALLS),
    Excuse("python3 -m venv .venv", INSTALLS, "python3 -m venv --help"),
    Excuse(". .venv/bin/activate", INSTALLS),
    Excuse("pip install 'phibuild[slurm]'", INSTALLS),
    Excuse("pip install . ./examples/phibuild-numpy", INSTALLS),
    Excuse("phibuild build recipe=edge_release", HUB, "phibuild plan recipe=edge_release"),
    Excuse(
        "phibuild build recipe=edge_release executor=slurm executor.partition=cpu",
        CLUSTER,
        "phibuild plan recipe=edge_release executor=slurm executor.partition=cpu",
    ),
    Excuse(
        "phibuild build model=microsoft/Phi-4-mini-instruct@main --only '*.openvino.*'",
        HUB,
        "phibuild plan model=phi-4-mini --only '*.openvino.*'",
    ),
    Excuse(
        "phibuild toolchain remove --old",
        SHARED,
        "PHIBUILD_TOOLCHAINS=./none phibuild toolchain remove --old",
    ),
    Excuse(
        "uv pip compile --universal --python-version 3.11 --overrides ../torch_overrides.txt "
        "requirements.in -o requirements.txt",
        INDEX,
        "uv pip compile --help",
    ),
    Excuse(
        "python benchmarks/small_machine.py WORK --size 3.8b --backends openvino,mlx --set",
        HOURS,
        "python benchmarks/small_machine.py --help",
    ),
)


def excuse(command: Command) -> Excuse | None:
    """Return why a command is not run; None if it is."""
    return next((one for one in EXCUSES if shlex.split(one.text) == command.words), None)


def runnable(command: Command) -> Command | None:
    """Return the command that is run: itself, what runs in its place, or None."""
    found = excuse(command)
    if found is None:
        return command
    return Command(command.page, command.line, found.instead) if found.instead else None
