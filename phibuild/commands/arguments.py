"""The verbs of the command line and what each takes: one function a verb, `build` the default.

Only argparse is imported here, so that `--help` is instant.
"""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable
from typing import NamedTuple, TypeVar

DEFAULT_VERB = "build"
_Declare = Callable[[ArgumentParser], None]
_Number = TypeVar("_Number", int, float)


class Verb(NamedTuple):
    """One line on what a verb does, and what declares its arguments."""

    help: str
    declare: _Declare


VERBS: dict[str, Verb] = {}
"""By name, in the order of `--help`; `phibuild.commands.<name>.run` does what each says."""


def _verb(name: str, text: str) -> Callable[[_Declare], _Declare]:
    def add(declare: _Declare) -> _Declare:
        VERBS[name] = Verb(text, declare)
        return declare

    return add


@_verb("build", "build, judge and report what a recipe asks for (the default verb)")
def _build(parser: ArgumentParser) -> None:
    _matrix(parser)
    text = "hash the checkpoint and everything that would be reused; what is damaged is built again"
    parser.add_argument("--verify", action="store_true", help=text)
    text = "ask the Hub where the branches of fetched models are now"
    parser.add_argument("--refresh", action="store_true", help=text)
    text = "print errors and one last line"
    parser.add_argument("-q", "--quiet", action="store_true", help=text)
    _json(parser)
    _screen(parser)
    _output(parser)


@_verb("plan", "show the matrix, sizes and memory before anything is built")
def _plan(parser: ArgumentParser) -> None:
    _matrix(parser)
    _json(parser)
    _screen(parser)
    _output(parser)


@_verb("report", "show a run's report again: phibuild report [RUN]")
def _report(parser: ArgumentParser) -> None:
    text = "recipe, folder, report.json, a run's time, RECIPE~1, latest (default: the newest run)"
    parser.add_argument("what", nargs="?", metavar="RUN", help=text)
    text = "what each matrix loses, and the types that were chosen by it, as a recipe has them"
    parser.add_argument("--sensitivity", action="store_true", help=text)
    text = "print report.md again: a page for a pull request"
    parser.add_argument("--markdown", action="store_true", help=text)
    text = "print a row for each cell: bytes, seconds, nats, shares"
    parser.add_argument("--csv", action="store_true", help=text)
    text = "write JUnit XML, a test for each cell and each gate ('-': print it)"
    parser.add_argument("--junit", metavar="FILE", help=text)
    text = "write the page of the run (report.html) to FILE"
    parser.add_argument("--html", metavar="FILE", help=text)
    text = "open the page of the run in the browser"
    parser.add_argument("--open", action="store_true", help=text)
    text = "write the page's plots as SVG and PNG into DIR"
    parser.add_argument("--plots", metavar="DIR", help=text)
    _json(parser)
    _screen(parser)
    _output(parser)


@_verb("diff", "what is worse, larger, slower, gone in a run: phibuild diff [A] [B]")
def _diff(parser: ArgumentParser) -> None:
    add = parser.add_argument
    text = "a run: recipe, latest, its time, RECIPE~2 (the second before the newest), a folder, a "
    text += "report.json (default: latest~1)"
    add("a", nargs="?", default="latest~1", metavar="A", help=text)
    text = "what it is compared with (default: latest)"
    add("b", nargs="?", default="latest", metavar="B", help=text)
    text = "exit code 3 where such a cell is: 'kl>+5%%' 'size>+1%%' 'speed<-20%%' failed gone gate"
    add("--fail-if", nargs="+", action="extend", metavar="CONDITION", help=text)
    add("--all", action="store_true", help="show what is noise, and cells that are the same")
    add("--markdown", action="store_true", help="print a page for a pull request")
    _json(parser)
    _output(parser)


@_verb("run", "generate text with an artifact: phibuild run CELL_OR_FOLDER [PROMPT]")
def _run(parser: ArgumentParser) -> None:
    add = parser.add_argument
    text = "a cell id of the newest run that has it, an artifact, or a GGUF file"
    add("what", metavar="CELL_OR_FOLDER", help=text)
    text = "what the user says; '-' or nothing: standard input"
    add("prompt", nargs="?", default="-", metavar="PROMPT", help=text)
    _output(parser)
    add("--system", metavar="TEXT", help="a system message before it")
    add("--raw", action="store_true", help="no chat template: go on from PROMPT as it is")
    add("--template", metavar="NAME", help="a named chat template in the default one's place")
    text = "tokens to generate at most (default: 128)"
    add("--max-tokens", type=_positive, default=128, metavar="N", help=text)


@_verb("imatrix", "write the importance matrix of an artifact: phibuild imatrix CELL FILE.gguf")
def _imatrix(parser: ArgumentParser) -> None:
    text = "a cell id or an artifact of llamacpp that was built with imatrix: TEXT"
    parser.add_argument("what", metavar="CELL_OR_FOLDER", help=text)
    text = "what llama-quantize --imatrix reads"
    parser.add_argument("file", metavar="FILE.gguf", help=text)
    _output(parser)


@_verb("verify", "check artifacts against their manifests: phibuild verify [RUN_OR_ARTIFACT]")
def _verify(parser: ArgumentParser) -> None:
    text = "recipe name, cell id, folder of a run or an artifact (default: the newest run)"
    parser.add_argument("what", nargs="?", metavar="RUN_OR_ARTIFACT", help=text)
    _json(parser)
    _output(parser)
    parser.add_argument("--store", action="store_true", help="everything that is in the store")


@_verb("store", "list what is in the store, tell its size, remove what is not needed")
def _store(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("action", choices=["list", "du", "gc"])
    _json(parser)
    text = "gc: remove more, least recently used first, until the store is no larger (20GiB)"
    add("--max-size", type=_size, metavar="SIZE", help=text)
    text = "gc: remove what no build has used for so long (default: 30d)"
    add("--older-than", type=_age, default="30d", metavar="TIME", help=text)
    add("--dry-run", action="store_true", help="gc: only say what would be removed")


@_verb("runs", "list runs, remove old ones: phibuild runs list|prune [RECIPE]")
def _runs(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("action", choices=["list", "prune"])
    add("what", nargs="?", metavar="RECIPE", help="only its runs (default: those of all recipes)")
    text = "prune: those written and last confirmed so long ago (default, without --keep: 30d)"
    add("--older-than", type=_age, metavar="TIME", help=text)
    text = "prune: all but the newest N of each recipe; the latest is one of them, and always stays"
    add("--keep", type=_positive, metavar="N", help=text)
    add("--dry-run", action="store_true", help="prune: only say what would be removed")
    _json(parser)
    _output(parser)


@_verb("list", "list recipes, devices, backends, models or precisions")
def _list(parser: ArgumentParser) -> None:
    choices = ["recipes", "devices", "backends", "models", "precisions"]
    parser.add_argument("what", choices=choices)
    _json(parser)
    _config_dir(parser)


@_verb("init", "write a recipe, a device and their schemas to start from: phibuild init [FOLDER]")
def _init(parser: ArgumentParser) -> None:
    text = "where recipes/ and conf/ are to lie (default: the working folder)"
    parser.add_argument("folder", nargs="?", default=".", metavar="FOLDER", help=text)
    text = "start from a recipe that ships with phibuild, such as iot"
    parser.add_argument("--from", dest="start", metavar="RECIPE", help=text)


@_verb("check", "say what is wrong with recipes and conf files: phibuild check [FILE ...]")
def _check(parser: ArgumentParser) -> None:
    text = "files, or folders with recipes/ and conf/ (default: the working folder)"
    parser.add_argument("files", nargs="*", metavar="FILE", help=text)
    _json(parser)


@_verb("show", "show a device, recipe, backend or model with every key: phibuild show KIND NAME")
def _show(parser: ArgumentParser) -> None:
    parser.add_argument("kind", choices=["device", "recipe", "backend", "model"])
    parser.add_argument("name", metavar="NAME", help="as 'phibuild list' has it")
    _json(parser)
    _config_dir(parser)


@_verb("doctor", "what works on this machine, what is missing and how to get it")
def _doctor(parser: ArgumentParser) -> None:
    _json(parser)


@_verb("toolchain", "list, install or remove the backends' environments, or make their locks")
def _toolchain(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("action", choices=["list", "install", "remove", "lock"])
    add("names", nargs="*", metavar="BACKEND", help="default: all")
    _json(parser)
    add("--old", action="store_true", help="remove: environments whose lock has changed")
    add("--upgrade", action="store_true", help="lock: newer versions where they are allowed")


@_verb("schema", "the JSON Schema of what --json prints, of documents, recipes and conf files")
def _schema(parser: ArgumentParser) -> None:
    text = "report, manifest, recipe, device, ... (default: list them)"
    parser.add_argument("what", nargs="?", metavar="NAME", help=text)
    text = "write it, or those of all documents, to DIR/NAME.json"
    parser.add_argument("--write", metavar="DIR", help=text)
    text = "those of recipes and conf files, in place of those of documents"
    parser.add_argument("--files", action="store_true", help=text)


@_verb("completion", "print a shell's completion of phibuild's words: bash, zsh or fish")
def _completion(parser: ArgumentParser) -> None:
    parser.add_argument("shell", choices=["bash", "zsh", "fish"])


def _matrix(parser: ArgumentParser) -> None:
    """What cells there are: overrides, and options that choose among them."""
    add = parser.add_argument
    text = "Hydra overrides: recipe=, model=, ..."
    add("overrides", nargs="*", metavar="key=value", help=text)
    text = "sweep: several values of an axis, or of a backend's option, become one matrix"
    add("-m", "--multirun", action="store_true", help=text)
    text = "only cells with such an id"
    add("--only", action="append", default=[], metavar="GLOB", help=text)
    add("--skip", action="append", default=[], metavar="GLOB", help="no cells with such an id")
    add("--strict", action="store_true", help="a cell that is skipped is an error")
    add("--cfg", choices=["job"], help="print the composed configuration and stop")
    _config_dir(parser)


def _config_dir(parser: ArgumentParser) -> None:
    text = "own recipes/ and conf/, looked at first"
    parser.add_argument("--config-dir", metavar="DIR", help=text)


def _json(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def _screen(parser: ArgumentParser) -> None:
    """How a report is shown."""
    text = "all columns and notes, however wide that is"
    parser.add_argument("--wide", action="store_true", help=text)
    parser.add_argument("--no-color", action="store_true", help="no colours (or set NO_COLOR)")


def _output(parser: ArgumentParser) -> None:
    text = "folder of runs (default: outputs)"
    parser.add_argument("--output", metavar="DIR", default="outputs", help=text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"must be 1 or more, not {text!r}")
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
        raise ArgumentTypeError(str(error)) from None
