"""`phibuild run`: generate text with an artifact's own runtime."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from phibuild.errors import EXIT_CELL_FAILED, EXIT_OK, ConfigError, Problem, suggest
from phibuild.execute.process import Runners, run_worker
from phibuild.execute.usage import Usage
from phibuild.places import cache_folder, user_path
from phibuild.report.runs import read_report
from phibuild.store import MANIFEST, Artifact, read_artifact
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

    def show(event: dict[str, Any]) -> None:
        if event["event"] == "text":
            print(event["text"], end="", flush=True)

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


def find_artifact(what: str, output: Path) -> Artifact:
    """Return the artifact of a folder, or of a cell id in the newest run that has built it."""
    folder = Path(what)
    if (folder / MANIFEST).is_file():
        artifact = read_artifact(folder)
        if artifact:
            return artifact
        raise ConfigError(Problem("its manifest.json is damaged", what))
    if folder.is_dir():
        raise ConfigError(
            Problem("no phibuild artifact (no manifest.json)", what, "give a folder of artifacts/")
        )
    known: set[str] = set()
    reports = sorted(output.glob("*/*/report.json"), key=lambda p: p.stat().st_mtime, reverse=True)
    for path in reports:
        for cell in read_report(path.parent)["cells"]:
            if cell["artifact"]:
                known.add(cell["id"])
                if cell["id"] == what:
                    found = read_artifact(path.parent / cell["artifact"])
                    if found:
                        return found
    raise ConfigError(
        Problem(
            f"no artifact {what!r}", str(output), suggest(what, known) or "phibuild build first"
        )
    )
