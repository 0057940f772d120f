"""`phibuild run`: generate text with an artifact's own runtime."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from phibuild.errors import EXIT_CELL_FAILED, EXIT_OK, EXIT_USAGE, ConfigError, Problem
from phibuild.execute.environments import what_to_set_up
from phibuild.execute.runner.events import (
    BadResult,
    Event,
    Failed,
    GenerateResult,
    Item,
    Stage,
    Text,
    read_result,
)
from phibuild.execute.runner.process import Runner, run_worker
from phibuild.report.runnable import Runnable, find_runnable
from phibuild.streams import complain
from phibuild.system.places import user_path
from phibuild.system.plugins import plugin
from phibuild.toolchains.environment import toolchain

_TIMEOUT = 24 * 3600.0  # seconds; who waits for the text sees it come


def run(arguments: argparse.Namespace) -> int:
    """Stream the generated text to standard output, and its speed to standard error."""
    _check_options(arguments)
    runnable = find_runnable(arguments.what, user_path(arguments.output, "--output"))
    prompt = _prompt(arguments)
    tools = toolchain(runnable.backend)
    if problem := tools.problem():
        complain(f"setting up {what_to_set_up(tools.name, problem)}")
        tools.install()
    request = {
        "verb": "generate",
        "folder": str(runnable.path.resolve()),
        "prompt": prompt,
        "system": arguments.system,
        "raw": arguments.raw,
        "template": arguments.template,
        "max_tokens": arguments.max_tokens,
        "threads": os.cpu_count() or 1,
    }
    with tempfile.TemporaryDirectory(prefix="phibuild-run-") as folder:
        return _generate(runnable, tools.python, request, Path(folder) / "run.log")


def _generate(runnable: Runnable, python: Path, request: Mapping[str, object], log: Path) -> int:
    failures: list[Failed] = []

    def show(event: Event) -> None:
        match event:
            case Text(text=text):
                print(text, end="", flush=True)
            case Stage(stage=stage):
                complain(stage)
            case Failed():
                failures.append(event)
            case Item(item=item, result=result):
                print(flush=True)
                try:
                    complain(_speed(read_result(result, GenerateResult)))
                except BadResult as error:
                    failures.append(Failed(event="failed", item=item, error=str(error)))

    name = runnable.backend
    runner = Runner(python, name, log, _TIMEOUT, mount=plugin(name).mount)
    outcome = run_worker(runner, request, show)
    if outcome.crash:
        complain(f"error: {runnable.path}: {outcome.crash}")
        return EXIT_CELL_FAILED
    for failure in failures:
        complain(f"error: {runnable.path}: {failure.error}")
        return EXIT_USAGE if failure.item == "prompt" else EXIT_CELL_FAILED
    return EXIT_OK


def _speed(result: GenerateResult) -> str:
    count, seconds = result.tokens, result.generation_seconds
    rate = f", {count / seconds:,.1f} tokens/s" if seconds else ""
    return f"{count} tokens in {seconds:.2f} s{rate} (prompt: {result.prompt_tokens} tokens)"


def _check_options(arguments: argparse.Namespace) -> None:
    for flag in ("system", "template"):
        if arguments.raw and getattr(arguments, flag) is not None:
            raise ConfigError(
                Problem(
                    f"--raw takes the prompt as it is: there is no place for --{flag}",
                    "command line",
                    "leave one of the two out",
                )
            )


def _prompt(arguments: argparse.Namespace) -> str:
    """Return the prompt: the word of the command line, or what standard input has."""
    text: str = arguments.prompt
    where = "command line"
    if text == "-":
        where = "standard input"
        if sys.stdin.isatty():
            complain("reading the prompt from standard input; Ctrl-D ends it")
        try:
            text = sys.stdin.buffer.read().decode("utf-8")
        except UnicodeDecodeError as error:
            raise ConfigError(Problem(f"the prompt is not UTF-8: {error}", where)) from error
        if not arguments.raw:
            text = text.removesuffix("\n").removesuffix("\r")  # of the line, not of the message
    for flag, words in (("the prompt", text), ("--system", arguments.system or "")):
        if any("\ud800" <= sign <= "\udfff" for sign in words):  # bytes that the shell passed on
            raise ConfigError(Problem(f"{flag} is not UTF-8", where))
    if not text.strip() and not arguments.raw:
        raise ConfigError(Problem("the prompt is empty", where, "--raw starts from nothing"))
    return text
