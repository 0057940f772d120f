"""Hydra's grammar of the command line's words, by Hydra's own parser."""

from __future__ import annotations

from collections.abc import Iterator

from hydra.core.override_parser.overrides_parser import OverridesParser, create_functions
from hydra.core.override_parser.types import Glob, Override, QuotedString
from hydra.errors import HydraException

__all__ = ["FUNCTIONS", "Glob", "NotAnOverride", "Override", "parse", "plain", "sweep_values"]

FUNCTIONS = tuple(create_functions().functions)
"""Names of the functions that values may call: choice, glob, range, ..."""


class NotAnOverride(ValueError):
    """What Hydra's grammar has against a word."""


def parse(word: str) -> Override:
    """Return what Hydra makes of a word; raises NotAnOverride."""
    try:
        override: Override = OverridesParser.create().parse_override(word)
    except (HydraException, RecursionError) as error:
        lines = str(error).splitlines()
        raise NotAnOverride(lines[0] if lines else "nested too deep") from error
    return override


def plain(value: object) -> object:
    """Return a value of a sweep as data, its quoted texts without the quotes."""
    match value:
        case QuotedString(text=text):
            return text
        case list():
            return [plain(entry) for entry in value]
        case dict():
            return {plain(key): plain(entry) for key, entry in value.items()}
    return value


def sweep_values(override: Override) -> Iterator[object]:
    """Yield the values of a sweep; raises NotAnOverride if it has no list of them."""
    try:
        yield from override.sweep_iterator()
    except HydraException as error:
        raise NotAnOverride(str(error)) from error
