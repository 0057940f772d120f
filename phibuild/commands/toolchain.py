"""`phibuild toolchain`: the backends' environments."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from tabulate import tabulate

from phibuild.backends.registry import BACKENDS, backend
from phibuild.commands.answers import ToolchainList, ToolchainRow
from phibuild.errors import EXIT_OK, BackendError, ConfigError, Problem, suggest
from phibuild.schema import document_text
from phibuild.streams import complain
from phibuild.toolchains.environment import (
    old_environments,
    remove_environment,
    size_bytes,
    toolchain,
)
from phibuild.toolchains.lock import make_lock
from phibuild.units import format_decimal

_OLD = "old: its lock has changed ('toolchain remove --old')"


def run(arguments: argparse.Namespace) -> int:
    """List, install or remove environments, or make their locks."""
    for name in arguments.names:
        if name not in BACKENDS:
            raise ConfigError(
                Problem(f"unknown backend {name!r}", "command line", suggest(name, BACKENDS))
            )
    for flag, action in (("old", "remove"), ("upgrade", "lock"), ("json", "list")):
        if getattr(arguments, flag) and arguments.action != action:
            raise ConfigError(Problem(f"--{flag} goes with 'toolchain {action}'", "command line"))
    names = arguments.names or _usable(arguments.action)
    if arguments.action == "list":
        _list(names, as_json=arguments.json)
    elif arguments.old:
        for folder in old_environments(names):
            remove_environment(folder)
            print(f"{folder.name}: removed")
    else:
        for name in names:
            print(f"{name}: {_act(arguments, name)}")
    return EXIT_OK


def _usable(action: str) -> list[str]:
    """Return the backends that stand for all of them: a package that is broken is told of."""
    names = []
    for name in BACKENDS:
        try:
            toolchain(name, locked=action != "lock")
        except BackendError as error:
            complain(f"left out: {error}")
        else:
            names.append(name)
    return names


def _act(arguments: argparse.Namespace, name: str) -> str:
    """Do one thing with one toolchain; return what was done."""
    tools = toolchain(name, locked=arguments.action != "lock")
    if arguments.action == "install":
        size = backend(name).toolchain_bytes
        if size and not tools.is_there:
            _say(name, f"its packages take about {format_decimal(size)}")
        seconds = tools.install(partial(_say, name))
        return "complete" + (f" ({seconds:.1f} s)" if seconds else " already")
    if arguments.action == "lock":
        return "locked anew" if make_lock(tools, upgrade=arguments.upgrade) else "unchanged"
    return "removed" if tools.remove() else "was not there"


def _list(names: list[str], *, as_json: bool) -> None:
    current = [toolchain(name) for name in names]
    found = [(tools.name, tools.problem() or "complete", tools.folder) for tools in current]
    found += [(folder.name.rsplit("-", 1)[0], _OLD, folder) for folder in old_environments(names)]
    rows = [
        ToolchainRow(backend=name, state=state, folder=str(folder), size_bytes=_size(folder))
        for name, state, folder in found
    ]
    if as_json:
        print(document_text(ToolchainList(rows)))
        return
    shown = [(row.backend, row.state, format_decimal(row.size_bytes), row.folder) for row in rows]
    print(tabulate(shown, headers=("backend", "state", "size", "folder"),
                   colalign=("left", "left", "right", "left"), disable_numparse=True))  # fmt: skip


def _size(folder: Path) -> int | None:
    return size_bytes(folder) if folder.is_dir() else None


def _say(name: str, text: str) -> None:
    print(f"{name}: {text}", file=sys.stderr)
