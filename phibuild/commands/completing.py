"""What a half-typed word of the command line may become, for a shell that asks by argcomplete.

argcomplete speaks with bash, zsh and fish and knows how each quotes and splits; what there is to
say comes from the declarations of the verbs and from names of files. Beside argcomplete nothing is
imported that takes time: a Tab has 0.2 s.
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import argcomplete
from argcomplete.lexers import split_line

from phibuild.commands.arguments import DEFAULT_VERB, VERBS
from phibuild.commands.completing_keys import Overrides, Words
from phibuild.config.roots import Roots


def answer() -> None:
    """Answer the shell, which says by the environment what it asks, and end the process."""
    parser = argparse.ArgumentParser(prefix_chars="\0", add_help=False)
    words = parser.add_argument("words", nargs="*")
    words.completer = _asked  # type: ignore[attr-defined]  # argcomplete's way
    argcomplete.autocomplete(parser, validator=lambda completion, prefix: True)


def _asked(prefix: str, **_: object) -> Words:
    """Return the completions of the word at the cursor of the shell's line."""
    line, point = os.environ["COMP_LINE"], int(os.environ["COMP_POINT"])
    words = split_line(line, point)[3]
    return complete(words[1:], prefix)


def complete(words: Sequence[str], prefix: str) -> Words:
    """Return what a word that begins with `prefix` may be after `words`, and what that means."""
    verb, rest = _verb(words)
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    VERBS[verb or DEFAULT_VERB].declare(parser)
    takes_value = {
        name: action
        for action in parser._actions
        for name in action.option_strings
        if action.nargs is None
    }
    said = _values(rest, takes_value)
    overrides = Overrides(_roots(said), several="-m" in rest or "--multirun" in rest)
    if rest and rest[-1] in takes_value:
        return _of_action(takes_value[rest[-1]], prefix, overrides, said)
    if prefix.startswith("-"):
        flags = {name: action.help or "" for action in parser._actions
                 for name in action.option_strings}  # fmt: skip
        flags |= {"--help": "what there is"}
        if verb is None:
            flags |= {"--version": "phibuild's version"}
        return _beginning(flags, prefix)
    found: Words = {}
    if verb is None:
        found = _beginning({name: one.help for name, one in VERBS.items()}, prefix)
        if any("=" in word for word in rest):
            found = {}
    places = [action for action in parser._actions if not action.option_strings]
    past = _positional(rest, takes_value)
    if not places:
        return found
    action = places[min(len(past), len(places) - 1)]
    if len(past) >= len(places) and places[-1].nargs != "*":
        return found
    said["before"] = past[-1] if past else ""
    return found | _of_action(action, prefix, overrides, said)


def _verb(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return the verb that stands among words, None where `build` is meant, and the others."""
    default = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    VERBS[DEFAULT_VERB].declare(default)
    values = {name for action in default._actions for name in action.option_strings
              if action.nargs is None}  # fmt: skip
    skip = False
    for place, word in enumerate(words):
        if skip or word.startswith("-"):
            skip = not skip and word in values
            continue
        if word in VERBS:
            return word, [*words[:place], *words[place + 1 :]]
        break
    return None, list(words)


def _values(words: Sequence[str], known: dict[str, argparse.Action]) -> dict[str, str]:
    """Return the values that options have on the line, by the options' names in the program."""
    found = {"output": "outputs"}
    for word, value in itertools.zip_longest(words, words[1:], fillvalue=""):
        name, equals, text = word.partition("=")
        if name in known:
            found[known[name].dest] = text if equals else value
    return found


def _positional(words: Sequence[str], known: dict[str, argparse.Action]) -> list[str]:
    """Return the words that are neither options nor their values."""
    return [
        word
        for last, word in itertools.pairwise(["", *words])
        if not word.startswith("-") and last not in known
    ]


def _roots(said: dict[str, str]) -> Roots:
    folder = said.get("config_dir")
    return Roots(Path(folder).expanduser() if folder else None)


def _of_action(
    action: argparse.Action, prefix: str, overrides: Overrides, said: dict[str, str]
) -> Words:
    """Return the values of an argument, by its choices or by what its help calls it."""
    if action.choices:
        return _beginning(dict.fromkeys(map(str, action.choices), ""), prefix)
    match action.metavar:
        case "key=value":
            found = overrides.complete(prefix)
            return found | _paths(prefix, "model=") if prefix.startswith("model=") else found
        case "DIR" | "FOLDER":
            return _paths(prefix)
        case "FILE" | "FILE.gguf":
            return _paths(prefix, files=True)
        case "RECIPE":
            names = [name for name, _ in Roots(shipped_alone=True).files("recipe")]
        case "NAME" if action.dest == "name":
            names = overrides.names(said["before"])
        case "BACKEND":
            names = overrides.names("backend")
        case "RUN":
            names = [path.parent.name for path in _runs(said)]
        case "CELL_OR_FOLDER" | "RUN_OR_ARTIFACT" | "GLOB":
            return _beginning(dict.fromkeys(_cells(said), ""), prefix) | _paths(prefix)
        case _:
            return {}
    return _beginning(dict.fromkeys(names, ""), prefix)


def _beginning(words: Words, prefix: str) -> Words:
    return {word: text for word, text in words.items() if word.startswith(prefix)}


def _runs(said: dict[str, str]) -> list[Path]:
    return sorted(Path(said["output"]).expanduser().glob("*/latest"))


def _cells(said: dict[str, str]) -> Iterator[str]:
    """Yield the ids of cells of the newest runs: each has a log."""
    for run in _runs(said):
        for log in sorted((run / "logs").glob("*.*.*.*.log")):
            yield log.name.removesuffix(".log")


def _paths(prefix: str, before: str = "", *, files: bool = False) -> Words:
    """Return the folders, and files, that a path may be; `before` stands in front of it."""
    text = prefix.removeprefix(before)
    folder, slash, name = text.rpartition("/")
    found: Words = {}
    try:
        entries = sorted(os.scandir(Path(f"{folder}{slash}").expanduser() if slash else "."),
                         key=lambda entry: entry.name)  # fmt: skip
    except (OSError, RuntimeError, ValueError):
        return {}
    for entry in entries:
        hidden = entry.name.startswith(".") and not name.startswith(".")
        if not entry.name.startswith(name) or hidden:
            continue
        if entry.is_dir():
            found[f"{before}{folder}{slash}{entry.name}/"] = ""
        elif files:
            found[f"{before}{folder}{slash}{entry.name}"] = ""
    return found
