"""Command-line overrides, by Hydra's own grammar: axes of the matrix, and words for Hydra."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException

from phibuild.catalogue import Catalogue
from phibuild.errors import ConfigError, Problem, suggest
from phibuild.schema import PRECISIONS
from phibuild.yamlfile import refused_interpolation

AXES = ("recipe", "model", "device", "backend", "precision")
# Groups of conf/ besides the axes, with what conf/phibuild.yaml chooses.
GROUPS = {"evaluation": "standard", "executor": "local"}
COMMAND_LINE = "command line"
_MAX_NAMES = 1000


@dataclass
class Words:
    """The overrides of a command line. `axes`: selected names, absent where not restricted;
    `axis_words`: as they were written; `globs`: the axes whose names come from a glob; `rest`:
    what is left for Hydra."""

    axes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    axis_words: dict[str, str] = field(default_factory=dict)
    globs: set[str] = field(default_factory=set)
    rest: list[Override] = field(default_factory=list)


def read_words(words: Sequence[str], catalogue: Catalogue, *, sweep: bool) -> Words:
    """Sort the overrides `words`; `sweep` is `-m`. Raises ConfigError with every problem."""
    problems: list[Problem] = []
    found = Words()
    for override in _parse(words):
        key = override.key_or_group
        word = override.input_line or key
        if refused := refused_interpolation(word):
            problems.append(Problem(refused, f"{COMMAND_LINE}: {word}", "write the value itself"))
        elif key not in AXES:
            problems += _check_plain(override)
            found.rest.append(override)
        elif key in found.axis_words:
            where = f"{COMMAND_LINE}: {word}"
            problems.append(Problem(f"{key} is given twice", where, f"to sweep: -m {key}=a,b"))
        else:
            found.axis_words[key] = word
            try:
                found.axes[key] = _axis_values(override, catalogue, sweep=sweep)
            except ConfigError as error:
                problems += error.problems
            if isinstance(override.value(), Glob):
                found.globs.add(key)
    for name in found.axes.get("recipe", ()):
        if name not in catalogue.recipe_files:
            where = f"{COMMAND_LINE}: {found.axis_words['recipe']}"
            what = f"unknown recipe {name!r}"
            problems.append(Problem(what, where, suggest(name, catalogue.recipe_files)))
    if problems:
        raise ConfigError(problems)
    return found


def _parse(words: Sequence[str]) -> list[Override]:
    parser = OverridesParser.create()
    parsed, problems = [], []
    for word in words:
        try:
            override: Override = parser.parse_override(word)
        except HydraException as error:
            reason = str(error).splitlines()[0]
            problems.append(
                Problem(
                    f"not an override: {reason}",
                    f"{COMMAND_LINE}: {word}",
                    "overrides are key=value, +key=value or ~key; quote values with spaces",
                )
            )
            continue
        if override.key_or_group:
            parsed.append(override)
        else:
            problems.append(Problem("not an override: no key", f"{COMMAND_LINE}: {word}",
                                    "overrides are key=value, +key=value or ~key"))  # fmt: skip
    if problems:
        raise ConfigError(problems)
    return parsed


def _check_plain(override: Override) -> Iterator[Problem]:
    """Refuse what cannot be composed into a build: sweeps of other keys, Hydra's own settings."""
    where = f"{COMMAND_LINE}: {override.input_line}"
    key = override.key_or_group
    if override.is_sweep_override():
        yield Problem(
            f"{key!r} cannot be swept",
            where,
            f"axes of a sweep: {', '.join(AXES)}; a list is written [a,b]",
        )
    if key.split(".")[0].split("/")[0] == "hydra":
        yield Problem("Hydra's own settings do not apply", where, "use --output DIR for the folder")
    elif key == "recipes":
        yield Problem("unknown key 'recipes'", where, suggest(key, AXES))
    elif override.package is not None:
        yield Problem("a package (@) cannot be given", where, f"{key}=VALUE")
    elif key in GROUPS and (override.is_add() or override.is_delete()):
        yield Problem(f"{key} can only be set", where, f"{key}=NAME")


def _axis_values(override: Override, catalogue: Catalogue, *, sweep: bool) -> tuple[str, ...]:
    where = f"{COMMAND_LINE}: {override.input_line}"
    key = override.key_or_group
    if override.is_delete() or override.is_add() or override.package is not None:
        raise ConfigError(Problem(f"{key} can only be set", where, f"{key}=NAME"))
    if override.is_sweep_override():
        if not sweep:
            example = (override.input_line or "").strip()
            raise ConfigError(
                Problem(f"several values for {key!r}", where, f"add -m to sweep: -m {example}")
            )
        value = override.value()
        if isinstance(value, Glob):
            known = _known_names(key, catalogue)
            chosen = [
                name
                for name in known
                if any(fnmatch.fnmatchcase(name, pattern) for pattern in value.include)
                and not any(fnmatch.fnmatchcase(name, pattern) for pattern in value.exclude)
            ]
            if not chosen:
                raise ConfigError(Problem(f"no {key} matches", where, f"known: {', '.join(known)}"))
            return tuple(chosen)
        try:
            values = [
                plain_value(item) for item in islice(override.sweep_iterator(), _MAX_NAMES + 1)
            ]
        except HydraException as error:
            raise ConfigError(
                Problem("this kind of sweep has no list of values", where, f"-m {key}=a,b")
            ) from error
        if len(values) > _MAX_NAMES:
            raise ConfigError(Problem(f"more than {_MAX_NAMES} names for {key!r}", where))
        return tuple(dict.fromkeys(values))
    value = override.value()
    if isinstance(value, (list, dict)):
        raise ConfigError(
            Problem(
                f"{key} takes one name, not {kind_of(value)}",
                where,
                f"to sweep: -m {key}=a,b",
            )
        )
    if value is None or value == "":
        raise ConfigError(Problem(f"{key} needs a name", where))
    return (plain_value(value),)


def plain_value(value: object) -> str:
    """Return a value as text, without the quotes that the grammar keeps."""
    return re.sub(r"^(['\"])(.*)\1$", r"\2", str(value))


def kind_of(value: object) -> str:
    """Say what a container is."""
    return "a list" if isinstance(value, list) else "a mapping"


def _known_names(axis: str, catalogue: Catalogue) -> list[str]:
    if axis == "precision":
        return list(PRECISIONS)
    return sorted(catalogue.files(axis))
