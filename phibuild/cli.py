"""The command line: verbs, flags, Hydra overrides. The only place that ends the process.

Only argparse is imported here, so that `--help` is instant; a verb imports what it needs.
"""

from __future__ import annotations

import argparse
import difflib
import gc
import importlib
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from phibuild import __version__
from phibuild.commands.arguments import DEFAULT_VERB, VERBS
from phibuild.errors import EXIT_INTERRUPTED, EXIT_USAGE, PhibuildError, Problem, suggest
from phibuild.streams import complain

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


class _Verbs(argparse._SubParsersAction):  # type: ignore[type-arg]  # generic for mypy alone
    """Keeps the first word that is no option, a verb or an override, and all after it: argparse
    itself would give the verb's parser nothing of what stands before it."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[object] | None,
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, values)


class _Skip(argparse.Action):
    """An option that may stand before a verb, whose own parser reads it."""

    def __call__(self, *_: object) -> None:
        pass


def _default_parser() -> _Parser:
    """Return the parser of words without a verb: what `build` takes, and the help of it all."""
    verbs = "\n".join(f"  {name:10} {verb.help}" for name, verb in VERBS.items())
    parser = _Parser(
        prog="phibuild",
        usage="phibuild [VERB] [options] [key=value ...]",
        description="Build one Phi checkpoint for every device; see what each artifact lost.",
        epilog=f"verbs ('phibuild VERB --help' for its options):\n{verbs}\n\n{_EPILOG}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"phibuild {__version__}")
    VERBS[DEFAULT_VERB].declare(parser)
    return parser


def _read_verb(words: Sequence[str]) -> tuple[str, _Parser, list[str]]:
    """Return the verb, the parser of its arguments, and these: the words without the verb.

    Raises PhibuildError for an unknown verb.
    """
    default = _default_parser()
    top = _Parser(prog=default.prog, add_help=False, allow_abbrev=False)
    verbs = top.add_subparsers(action=_Verbs, dest="words", prog=top.prog)
    parsers = {}
    for name, verb in VERBS.items():
        parsers[name] = verbs.add_parser(name, description=verb.help, allow_abbrev=False)
        verb.declare(parsers[name])
    verbs.choices = None  # type: ignore[assignment]  # or an override, where `build` is meant
    for parser in (default, *parsers.values()):
        for option in parser._actions:
            if new := set(option.option_strings).difference(top._option_string_actions):
                # A value that is missing is for the verb's parser to tell of; of several before a
                # verb only the first can be told from it.
                nargs = "?" if option.nargs in (None, "+") else option.nargs
                top.add_argument(*new, action=_Skip, nargs=nargs)
    found: list[str] = top.parse_known_args(words)[0].words or []
    start = len(words) - len(found)
    place = next((place for place in range(start, len(words)) if words[place] != "--"), None)
    if place is None or "=" in words[place] or words[place].startswith(("~", "+", "-")):
        return DEFAULT_VERB, default, list(words)
    name = words[place]
    if name not in parsers:
        what = f"unknown verb {name!r}"
        raise PhibuildError(Problem(what, "command line", _verb_remedy(name, words)))
    return name, parsers[name], [*words[:place], *words[place + 1 :]]


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


def _import(name: str) -> ModuleType:
    """Import a verb. The garbage collector, which would take a tenth of a command's time to look
    through libraries, rests meanwhile, and leaves alone for good what is there in the end."""
    if name in sys.modules:
        return sys.modules[name]
    gc.disable()
    try:
        with _signals_wait():
            return importlib.import_module(name)
    finally:
        gc.freeze()
        gc.enable()


def run_command(words: Sequence[str]) -> int:
    """Run one command and return its exit code. Raises PhibuildError for the user's mistakes."""
    if not words:
        _default_parser().print_help()
        return 0
    verb, parser, rest = _read_verb(words)
    arguments = parser.parse_intermixed_args(rest)
    arguments.command = " ".join(["phibuild", *words])
    module = _import(f"phibuild.commands.{verb}")
    code: int = module.run(arguments)
    return code


def _annotate(error: PhibuildError) -> None:
    """Show an error where GitHub Actions shows those of a file, if this runs there."""
    from phibuild.report.annotations import is_in_actions, limited, problem_annotation

    if is_in_actions():
        for line in limited([problem_annotation(problem) for problem in error.problems]):
            complain(line)


def _was_interrupted(error: BaseException) -> bool:
    """Whether a library that was interrupted failed while it cleaned up, as argparse does when it
    has not begun to set what it is to restore."""
    before = error.__context__
    return before is not None and (
        isinstance(before, KeyboardInterrupt) or _was_interrupted(before)
    )


def main(words: Sequence[str] | None = None) -> NoReturn:
    """Console entry point: run, show errors as they are meant for users, exit."""
    if "_ARGCOMPLETE" in os.environ:
        from phibuild.commands.completing import answer

        answer()  # to a shell that asks how a word goes on
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
        _annotate(error)
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
    except Exception as error:
        if not _was_interrupted(error):
            raise
        complain("interrupted")
        code = EXIT_INTERRUPTED
    if words is None:
        # All is done and said: a Ctrl-C while this process ends would be a traceback.
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)
    sys.exit(code)
