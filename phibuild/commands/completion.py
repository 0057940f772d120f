"""`phibuild completion`: the script by which a shell completes phibuild's words."""

from __future__ import annotations

import argparse

from argcomplete.shell_integration import shellcode

from phibuild.errors import EXIT_OK


def run(arguments: argparse.Namespace) -> int:
    """Print argcomplete's script for a shell."""
    print(shellcode(["phibuild"], shell=arguments.shell))
    return EXIT_OK
