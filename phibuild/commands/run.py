"""`phibuild run`: generate text with an artifact's own runtime."""

from __future__ import annotations

import argparse
import os
import sys

from phibuild.errors import EXIT_CELL_FAILED, EXIT_OK
from phibuild.execute.events import Event, Text
from phibuild.execute.process import Runners, run_worker
from phibuild.execute.usage import Usage
from phibuild.places import cache_folder, user_path
from phibuild.report.runs import find_artifact
from phibuild.toolchains import toolchain


def run(arguments: argparse.Namespace) -> int:
    """Stream the generated text to standard output."""
    artifact = find_artifact(arguments.what, user_path(arguments.output, "--output"))
    tools = toolchain(artifact.manifest["backend"])
    if tools.problem():
        print(f"setting up the {tools.name} toolchain", file=sys.stderr)
        tools.install()
    log = cache_folder() / "run.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_bytes(b"")

    def show(event: Event) -> None:
        if isinstance(event, Text):
            print(event.text, end="", flush=True)

    outcome = run_worker(
        tools.python,
        tools.name,
        {
            "verb": "generate",
            "folder": str(artifact.folder.resolve()),
            "prompt": arguments.prompt,
            "max_tokens": arguments.max_tokens,
            "threads": os.cpu_count() or 1,
        },
        log,
        runners=Runners(),
        usage=Usage(),
        timeout=3600,
        on_event=show,
    )
    print()
    if outcome.crash:
        print(f"error: {artifact.folder}: {outcome.crash}", file=sys.stderr)
        return EXIT_CELL_FAILED
    return EXIT_OK
