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
    _json(parser)
    _output(parser)


@_verb("plan", "show the matrix, sizes and memory before anything is built")
def _plan(parser: ArgumentParser) -> None:
    _matrix(parser)
    _json(parser)


@_verb("report", "show a run's report again: phibuild report [RUN]")
def _report(parser: ArgumentParser) -> None:
    text = "recipe name or folder (default: the newest run)"
    parser.add_argument("what", nargs="?", metavar="RUN", help=text)
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


@_verb("list", "list recipes, devices, backends, models or precisions")
def _list(parser: ArgumentParser) -> None:
    choices = ["recipes", "devices", "backends", "models", "precisions"]
    parser.add_argument("what", choices=choices)
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


@_verb("schema", "the JSON Schema of report.json, manifest.json and what --json prints")
def _schema(parser: ArgumentParser) -> None:
    text = "report, manifest, ... (default: list them)"
    parser.add_argument("what", nargs="?", metavar="NAME", help=text)
    parser.add_argument("--write", metavar="DIR", help="write it, or all, to DIR/NAME.json")


def _matrix(parser: ArgumentParser) -> None:
    """What cells there are: overrides, and options that choose among them."""
    add = parser.add_argument
    text = "Hydra overrides: recipe=, model=, ..."
    add("overrides", nargs="*", metavar="key=value", help=text)
    text = "sweep: several values of recipe, model, device, backend, precision become one matrix"
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
