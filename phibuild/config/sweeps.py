"""Values of a sweep: of an axis, that a function of Hydra's grammar makes (glob, range, sort, ...),
and of the options of backends."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from itertools import islice

from phibuild.config.edits import COMMAND_LINE, kind_of
from phibuild.config.grammar import Glob, NotAnOverride, Override, parse, plain, sweep_values
from phibuild.errors import ConfigError, Problem

FORMS = "overrides are key=value, +key=value or ~key"
_MAX_NAMES = 1000
MAX_COMBINATIONS = 256
"""Of the values of all sweeps over options: each composes the recipe once."""


def can_sweep(key: str) -> bool:
    """Say whether a key is swept that is no axis: the options of a backend at a precision, or one
    of them: backends.BACKEND.PRECISION and devices.DEVICE.BACKEND.PRECISION, and what is below."""
    top, *below = key.split(".")
    return len(below) >= {"backends": 2, "devices": 3}.get(top, len(below) + 1)


def needs_sweep(key: str, word: str) -> Problem:
    """Say that several values of a key need -m."""
    where = f"{COMMAND_LINE}: {word}"
    return Problem(f"several values for {key!r}", where, f"add -m to sweep: -m {word.strip()}")


def function_values(
    key: str, word: str, known: Sequence[str], *, sweep: bool
) -> tuple[tuple[str, ...], bool]:
    """Return what a function makes of an axis whose names are `known`, and whether it is a glob;
    `sweep` is `-m`. Raises ConfigError."""
    where = f"{COMMAND_LINE}: {word}"
    try:
        override = parse(word)
    except NotAnOverride as error:
        remedy = f"{FORMS}; quote values with spaces"
        raise ConfigError(Problem(f"not an override: {error}", where, remedy)) from error
    value = override.value()
    if not override.is_sweep_override():
        if kind := kind_of(value):
            what = f"{key} takes one name, not {kind}"
            raise ConfigError(Problem(what, where, f"to sweep: -m {key}=a,b"))
        if value is None or value == "":
            raise ConfigError(Problem(f"{key} needs a name", where))
        return (_without_quotes(value),), False
    if not sweep:
        raise ConfigError(needs_sweep(key, word))
    if isinstance(value, Glob):
        chosen = [name for name in known if _matches(name, value)]
        if not chosen:
            raise ConfigError(Problem(f"no {key} matches", where, f"known: {', '.join(known)}"))
        return tuple(chosen), True
    try:
        items = islice(sweep_values(override), _MAX_NAMES + 1)
        values = [_without_quotes(item) for item in items]
    except NotAnOverride as error:
        what = "this kind of sweep has no list of values"
        raise ConfigError(Problem(what, where, f"-m {key}=a,b")) from error
    if len(values) > _MAX_NAMES:
        raise ConfigError(Problem(f"more than {_MAX_NAMES} names for {key!r}", where))
    return tuple(dict.fromkeys(values)), False


def option_values(override: Override, word: str) -> tuple[object, ...]:
    """Return the values of a sweep over options, each once. Raises ConfigError."""
    key = override.key_or_group
    where = f"{COMMAND_LINE}: {word}"
    try:
        values = [plain(value) for value in islice(sweep_values(override), MAX_COMBINATIONS + 1)]
    except NotAnOverride as error:
        what = "this kind of sweep has no list of values"
        raise ConfigError(Problem(what, where, f"-m {key}=a,b")) from error
    return tuple({repr(value): value for value in values}.values())


def _matches(name: str, glob: Glob) -> bool:
    """Say whether a name is one of Hydra's glob()."""
    included, excluded = (
        any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
        for patterns in (glob.include, glob.exclude)
    )
    return included and not excluded


def _without_quotes(value: object) -> str:
    """Return a value as text, without the quotes that the grammar keeps."""
    return re.sub(r"^(['\"])(.*)\1$", r"\2", str(value))
