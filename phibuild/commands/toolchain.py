"""`phibuild toolchain`: the backends' environments."""

from __future__ import annotations

import argparse
import sys
from functools import partial

from tabulate import tabulate

from phibuild.backends.registry import BACKENDS
from phibuild.errors import EXIT_OK, ConfigError, Problem, suggest
from phibuild.toolchains import toolchain


def run(arguments: argparse.Namespace) -> int:
    """List, install or remove environments."""
    for name in arguments.names:
        if name not in BACKENDS:
            raise ConfigError(
                Problem(f"unknown backend {name!r}", "command line", suggest(name, BACKENDS))
            )
    names = arguments.names or BACKENDS
    if arguments.action == "list":
        rows = [
            (name, toolchain(name).problem() or "complete", str(toolchain(name).folder))
            for name in names
        ]
        print(tabulate(rows, headers=("backend", "state", "folder"), disable_numparse=True))
    for name in names:
        tools = toolchain(name)
        if arguments.action == "install":
            seconds = tools.install(partial(_say, name))
            print(f"{name}: complete" + (f" ({seconds:.1f} s)" if seconds else " already"))
        elif arguments.action == "remove":
            print(f"{name}: {'removed' if tools.remove() else 'was not there'}")
    return EXIT_OK


def _say(name: str, text: str) -> None:
    print(f"{name}: {text}", file=sys.stderr)
