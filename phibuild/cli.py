"""The command line: verbs, flags, Hydra overrides. The only place that ends the process.

Only argparse is imported here, so that `--help` is instant; a verb imports what it needs.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import io
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn, TypeVar

from phibuild import __version__
from phibuild.errors import EXIT_INTERRUPTED, EXIT_USAGE, PhibuildError, Problem, suggest
from phibuild.streams import complain

VERBS = {
    "build": "build, judge and report what a recipe asks for (the default verb)",
    "plan": "show the matrix, sizes and memory before anything is built",
    "report": "show a run's report again: phibuild report [RUN]",
    "run": "generate text with an artifact: phibuild run CELL_OR_FOLDER [PROMPT]",
    "verify": "check artifacts against their manifests: phibuild verify [RUN_OR_ARTIFACT]",
    "store": "list what is in the store, tell its size, remove what is not needed",
    "list": "list recipes, devices, backends, models or precisions",
    "doctor": "what works on this machine, what is missing and how to get it",
    "toolchain": "list, install or remove the backends' environments, or make their locks",
    "schema": "the JSON Schema of report.json, manifest.json and what --json prints",
}
_VALUED = ("--only", "--skip", "--cfg", "--config-dir", "--output", "--max-tokens", "--max-size",
           "--older-than", "--system", "--template", "--write")  # fmt: skip
_Number = TypeVar("_Number", int, float)
_EPILOG = """\
examples:
  phibuild plan                                   what the quickstart would build
  phibuild build recipe=mobile model=./my-phi     a recipe, your own checkpoint
  phibuild -m precision=int4,int8                 a sweep: one matrix, one report
  phibuild build recipe=edge_release --only '*.openvino.*'
exit codes: 0 built, gates met; 1 a cell failed; 2 wrong usage or input, nothing to build;
            3 a gate failed; 130 interrupted
"""


class _Parser(argparse.ArgumentParser):
    """argparse with errors like all others of phibuild."""

    def error(self, message: str) -> NoReturn:
        word = next((word for word in message.split() if word.startswith("-")), "")
        near = suggest(word, self._option_string_actions) if "unrecognized" in message else ""
        remedy = near if near.startswith("did") else f"'{self.prog} --help' shows what there is"
        raise PhibuildError(Problem(message, "command line", remedy))


def _parser(verb: str | None) -> argparse.ArgumentParser:
    if verb is None:
        verbs = "\n".join(f"  {name:10} {text}" for name, text in VERBS.items())
        parser = _Parser(
            prog="phibuild",
            usage="phibuild [VERB] [options] [key=value ...]",
            description="Build one Phi checkpoint for every device; see what each artifact lost.",
            epilog=f"verbs ('phibuild VERB --help' for its options):\n{verbs}\n\n{_EPILOG}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        parser.add_argument("--version", action="version", version=f"phibuild {__version__}")
        verb = "build"
    else:
        parser = _Parser(prog=f"phibuild {verb}", description=VERBS[verb], allow_abbrev=False)
    add = parser.add_argument
    if verb in ("build", "plan"):
        add(
            "overrides",
            nargs="*",
            metavar="key=value",
            help="Hydra overrides: recipe=, model=, ...",
        )
        add("-m", "--multirun", action="store_true", help="sweep: several values of recipe, model, "
            "device, backend, precision become one matrix")  # fmt: skip
        add(
            "--only", action="append", default=[], metavar="GLOB", help="only cells with such an id"
        )
        add("--skip", action="append", default=[], metavar="GLOB", help="no cells with such an id")
        add("--strict", action="store_true", help="a cell that is skipped is an error")
        add("--cfg", choices=["job"], help="print the composed configuration and stop")
        add("--config-dir", metavar="DIR", help="own recipes/ and conf/, looked at first")
    if verb == "build":
        add("--verify", action="store_true", help="hash the checkpoint and everything that would "
            "be reused; what is damaged is built again")  # fmt: skip
        add("--refresh", action="store_true",
            help="ask the Hub where the branches of fetched models are now")  # fmt: skip
    if verb in ("build", "plan", "report", "doctor", "list", "verify", "store", "toolchain"):
        add("--json", action="store_true", help="print JSON instead of tables")
    if verb in ("build", "report", "run", "verify"):
        add("--output", metavar="DIR", default="outputs", help="folder of runs (default: outputs)")
    if verb == "report":
        add(
            "what", nargs="?", metavar="RUN", help="recipe name or folder (default: the newest run)"
        )
    if verb == "verify":
        add("what", nargs="?", metavar="RUN_OR_ARTIFACT", help="recipe name, cell id, folder of a "
            "run or an artifact (default: the newest run)")  # fmt: skip
        add("--store", action="store_true", help="everything that is in the store")
    if verb == "store":
        add("action", choices=["list", "du", "gc"])
        add("--max-size", type=_size, metavar="SIZE", help="gc: remove more, least recently used "
            "first, until the store is no larger (20GiB)")  # fmt: skip
        add("--older-than", type=_age, default="30d", metavar="TIME", help="gc: remove what no "
            "build has used for so long (default: 30d)")  # fmt: skip
        add("--dry-run", action="store_true", help="gc: only say what would be removed")
    if verb == "run":
        add(
            "what",
            metavar="CELL_OR_FOLDER",
            help="a cell id of the newest run that has it, an artifact, or a GGUF file",
        )
        add("prompt", nargs="?", default="-", metavar="PROMPT",
            help="what the user says; '-' or nothing: standard input")  # fmt: skip
        add("--system", metavar="TEXT", help="a system message before it")
        add("--raw", action="store_true", help="no chat template: go on from PROMPT as it is")
        add("--template", metavar="NAME", help="a named chat template in the default one's place")
        add("--max-tokens", type=_positive, default=128, metavar="N",
            help="tokens to generate at most (default: 128)")  # fmt: skip
    if verb == "list":
        add("what", choices=["recipes", "devices", "backends", "models", "precisions"])
        add("--config-dir", metavar="DIR", help="own recipes/ and conf/, looked at first")
    if verb == "schema":
        add("what", nargs="?", metavar="NAME", help="report, manifest, ... (default: list them)")
        add("--write", metavar="DIR", help="write it, or all, to DIR/NAME.json")
    if verb == "toolchain":
        add("action", choices=["list", "install", "remove", "lock"])
        add("names", nargs="*", metavar="BACKEND", help="default: all")
        add("--old", action="store_true", help="remove: environments whose lock has changed")
        add("--upgrade", action="store_true", help="lock: newer versions where they are allowed")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {text!r}")
    return int(text)


def _size(text: str) -> int:
    from phibuild.units import parse_size

    return _parsed(parse_size, text)


def _age(text: str) -> float:
    from phibuild.units import parse_age

    return _parsed(parse_age, text)


def _parsed(parse: Callable[[str], _Number], text: str) -> _Number:
    try:
        return parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _split_verb(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """Take the verb off the words; None where there is none (a build)."""
    position = next(
        (
            number
            for number, word in enumerate(words)
            if not word.startswith("-") and (not number or words[number - 1] not in _VALUED)
        ),
        None,
    )
    if position is None:
        return None, list(words)
    first = words[position]
    if "=" in first or first.startswith(("~", "+")):
        return None, list(words)
    if first not in VERBS:
        raise PhibuildError(
            Problem(f"unknown verb {first!r}", "command line", _verb_remedy(first, words))
        )
    return first, [*words[:position], *words[position + 1 :]]


def _verb_remedy(word: str, words: Sequence[str]) -> str:
    """Suggest a verb, or the override of a recipe, device or model of that name."""
    from phibuild.config.catalogue import Catalogue
    from phibuild.config.overrides import name_remedy

    before = list(words)
    own = before[before.index("--config-dir") + 1 :][:1] if "--config-dir" in before else []
    catalogue = Catalogue(Path(own[0])) if own else Catalogue()
    is_verb = bool(difflib.get_close_matches(word, VERBS, cutoff=0.75))
    return name_remedy(word, catalogue, near=not is_verb) or suggest(word, VERBS)


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Have Ctrl-C and SIGTERM wait until the block ends: an extension module that is interrupted
    while it is imported ends in an error of its own, or in the interpreter's."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def run_command(words: Sequence[str]) -> int:
    """Run one command and return its exit code. Raises PhibuildError for the user's mistakes."""
    verb, rest = _split_verb(words)
    parser = _parser(verb)
    if verb is None and not rest:
        parser.print_help()
        return 0
    arguments = parser.parse_intermixed_args(rest)
    arguments.command = " ".join(["phibuild", *words])
    with _signals_wait():
        module = importlib.import_module(f"phibuild.commands.{verb or 'build'}")
    code: int = module.run(arguments)
    return code


def main(words: Sequence[str] | None = None) -> NoReturn:
    """Console entry point: run, show errors as they are meant for users, exit."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as gently as Ctrl-C
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name that the terminal has no letters for is no reason to fail.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = run_command(sys.argv[1:] if words is None else words)
        sys.stdout.flush()
    except PhibuildError as error:
        for problem in error.problems:
            complain(f"error: {problem}")
        code = error.exit_code
    except KeyboardInterrupt:
        complain("interrupted")
        code = EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone (a pager, head): nothing is wrong with us.
        sys.stderr.close()
        code = EXIT_USAGE if sys.stdout.closed else 0
    except OSError as error:
        # A full disk, a name that is too long, a folder without permission.
        if error.filename is None:
            raise
        complain(f"error: {error.filename}: {error.strerror}")
        code = EXIT_USAGE
    sys.exit(code)
