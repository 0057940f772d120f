"""The words of a command line: axes of the matrix, groups of conf/, and keys to set or delete."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from phibuild.config.axis_words import (
    Element,
    chosen_text,
    forbidden_character,
    is_function,
    read_elements,
    read_mapping,
)
from phibuild.config.catalogue import Catalogue
from phibuild.config.edits import COMMAND_LINE, Edit
from phibuild.config.grammar import NotAnOverride, Override, parse
from phibuild.config.groups import GROUPS
from phibuild.config.sweeps import FORMS, can_sweep, function_values, needs_sweep, option_values
from phibuild.config.yamlfile import refused_interpolation
from phibuild.errors import ConfigError, Problem, suggest
from phibuild.schema import PRECISIONS
from phibuild.system.places import is_folder

AXES = ("recipe", "model", "device", "backend", "precision")
_WORD = re.compile(r"([^=]*)=(.*)", re.DOTALL)
# What stands for a key that Hydra's grammar does not know, such as one that starts with a digit.
_STAND_IN = "key"

Model = str | dict[str, str]
"""A model of the command line: a reference, or a mapping of ModelChoice's keys."""


@dataclass
class Words:
    """The words of a command line. `axes`: selected names, absent where not restricted, without
    the models, which are `models`; `axis_words`: as they were written; `globs`: the axes whose
    names come from a glob; `groups`: chosen files with the words that chose them; `edits`: what is
    left, in its order."""

    axes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    models: tuple[Model, ...] = ()
    axis_words: dict[str, str] = field(default_factory=dict)
    globs: set[str] = field(default_factory=set)
    groups: dict[str, tuple[str, str]] = field(default_factory=dict)
    edits: list[Edit] = field(default_factory=list)


def read_words(words: Sequence[str], catalogue: Catalogue, *, sweep: bool) -> Words:
    """Sort the overrides `words`; `sweep` is `-m`. Raises ConfigError with every problem."""
    problems: list[Problem] = []
    found = Words()
    for word in words:
        try:
            _read_word(word, found, catalogue, sweep=sweep)
        except ConfigError as error:
            problems += error.problems
    for name in found.axes.get("recipe", ()):
        if name not in catalogue.recipe_files:
            where = f"{COMMAND_LINE}: {found.axis_words['recipe']}"
            what = f"unknown recipe {name!r}"
            problems.append(Problem(what, where, suggest(name, catalogue.recipe_files)))
    if problems:
        raise ConfigError(*problems)
    return found


def name_remedy(word: str, catalogue: Catalogue, *, near: bool = True) -> str | None:
    """Suggest the override that a bare word must be meant for, None if no name is like it (is it,
    without `near`)."""
    if "=" in word or not word:
        return None
    if is_folder(word):
        return f"did you mean 'model={word}'?"
    names: dict[str, str] = {}
    for axis in AXES:
        for name in known_names(axis, catalogue):
            names.setdefault(name, axis)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.75) if near else []
    found = [word] if word in names else close
    return f"did you mean '{names[found[0]]}={found[0]}'?" if found else None


def known_names(axis: str, catalogue: Catalogue) -> list[str]:
    """Return the names that an axis can have."""
    if axis == "precision":
        return list(PRECISIONS)
    return sorted(catalogue.files(axis))


def _read_word(word: str, found: Words, catalogue: Catalogue, *, sweep: bool) -> None:
    where = f"{COMMAND_LINE}: {word}"
    if refused := refused_interpolation(word):
        raise ConfigError(Problem(refused, where, "write the value itself"))
    match = _WORD.fullmatch(word)
    key: str = match[1] if match else word
    text: str = match[2].strip(" \t") if match else ""
    letter = forbidden_character(word)
    if letter and (key in AXES or key in GROUPS or not "\0" < letter < "\x7f"):
        shown = "".join(repr(c)[1:-1] if forbidden_character(c) else c for c in word)
        what = f"the character {letter!r} cannot stand in an override"
        remedy = "rename what it names"
        if unicodedata.category(letter) == "Cs":  # so Python says bytes that it cannot decode
            what, remedy = "is not text in this locale", f"set LC_ALL=C.UTF-8, or {remedy}"
        raise ConfigError(Problem(what, f"{COMMAND_LINE}: {shown}", remedy))
    if match and key in AXES:
        if key in found.axis_words:
            remedy = f"to sweep: -m {key}=a,b"
            raise ConfigError(Problem(f"{key} is given twice", where, remedy))
        found.axis_words[key] = word
        values = _axis_values(key, text, word, found, catalogue, sweep=sweep)
        if key == "model":
            found.models = values
        else:
            found.axes[key] = tuple(_normal(str(value)) for value in values)
    elif match and key in GROUPS:
        whole = _normal(text)
        name = whole if whole in catalogue.files(key) else _one_text(key, text, where)
        found.groups[key] = (_normal(name), word)
    elif match and key.startswith("model."):
        found.edits.append(Edit(key, _one_text(key, text, where), word))
    else:
        found.edits.append(_read_edit(word, key, text, catalogue, sweep=sweep))


def _normal(name: str) -> str:
    """Return a name as the catalogue has it, however its accents are encoded."""
    return unicodedata.normalize("NFC", name)


def _read_edit(word: str, key: str, text: str, catalogue: Catalogue, *, sweep: bool) -> Edit:
    where = f"{COMMAND_LINE}: {word}"
    # Hydra's choice() takes no null.
    listed = chosen_text(text) if can_sweep(key.lstrip("+")) else text
    try:
        override = _parse_any(word if listed == text else f"{key}={listed}", key, listed)
    except NotAnOverride as error:
        remedy = name_remedy(word, catalogue) or f"{FORMS}; quote values with spaces"
        raise ConfigError(Problem(f"not an override: {error}", where, remedy)) from error
    if not override.key_or_group:
        raise ConfigError(Problem("not an override: no key", where, FORMS))
    if problems := tuple(_check_plain(override, where)):
        raise ConfigError(*problems)
    if not override.is_sweep_override():
        return Edit(override.key_or_group, override.value(), word, override.is_delete())
    if not sweep:
        raise ConfigError(needs_sweep(override.key_or_group, word))
    return Edit(override.key_or_group, None, word, values=option_values(override, word))


def _parse_any(word: str, key: str, text: str) -> Override:
    """Return what Hydra makes of a word whose key may be any dotted name (8gb_board, é)."""
    try:
        return parse(word)
    except NotAnOverride:
        bare = key.lstrip("+~")
        sign = key[: len(key) - len(bare)]
        if sign not in ("", "+", "++", "~") or not all(map(_is_name, bare.split("."))):
            raise
        override = parse(f"{sign}{_STAND_IN}{f'={text}' if '=' in word else ''}")
        override.key_or_group = bare
        return override


def _is_name(text: str) -> bool:
    return bool(text.strip()) and all(
        letter in "_- ()" or unicodedata.category(letter)[0] in "LMN" for letter in text
    )


def _check_plain(override: Override, where: str) -> Iterator[Problem]:
    """Refuse what cannot be composed into a build: sweeps of other keys, Hydra's own settings."""
    key = override.key_or_group
    if override.is_sweep_override() and (override.is_delete() or not can_sweep(key)):
        yield _not_swept(key, where)
    if key.split(".")[0].split("/")[0] == "hydra":
        yield Problem("Hydra's own settings do not apply", where, "use --output DIR for the folder")
    elif key == "recipes":
        yield Problem("unknown key 'recipes'", where, suggest(key, AXES))
    elif override.package is not None:
        yield Problem("a package (@) cannot be given", where, f"{key}=VALUE")
    elif key in GROUPS or key in AXES:
        yield Problem(f"{key} can only be set", where, f"{key}=NAME")


def _not_swept(key: str, where: str) -> Problem:
    remedy = (
        f"axes of a sweep: {', '.join(AXES)}, and options: backends.BACKEND.PRECISION.OPTION, "
        "devices.DEVICE.BACKEND.PRECISION.OPTION; a list is written [a,b]"
    )
    return Problem(f"{key!r} cannot be swept", where, remedy)


def _elements(key: str, text: str, where: str) -> list[Element]:
    try:
        elements = read_elements(text)
    except NotAnOverride as error:
        what = f"not an override: {error}"
        raise ConfigError(
            Problem(what, where, f"{key}=NAME; quote what is no plain text")
        ) from error
    if any(element.kind == "text" and not element.text.strip() for element in elements):
        raise ConfigError(Problem(f"{key} needs a name", where))
    return elements


def _one_text(key: str, text: str, where: str) -> str:
    """Return the one name that stands for a group, or below `model`."""
    elements = _elements(key, text, where)
    if len(elements) > 1 or is_function(text):
        raise ConfigError(_not_swept(key, where))
    return elements[0].text


def _axis_values(
    key: str, text: str, word: str, found: Words, catalogue: Catalogue, *, sweep: bool
) -> tuple[Model, ...]:
    """Return the values of an axis, texts but for models; notes a glob."""
    where = f"{COMMAND_LINE}: {word}"
    known = known_names(key, catalogue)
    if not sweep and text and (_normal(text) in known or (key == "model" and is_folder(text))):
        return (text,)  # whatever else it might mean
    if is_function(text):
        values, is_glob = function_values(key, word, known, sweep=sweep)
        found.globs |= {key} if is_glob else set()
        return values
    elements = _elements(key, text, where)
    if len(elements) > 1 and not sweep:
        raise ConfigError(needs_sweep(key, word))
    chosen: list[Model] = []
    for element in elements:
        if element.kind == "text":
            chosen.append(element.text)
        elif key == "model" and element.kind == "mapping":
            try:
                chosen.append(read_mapping(element.text))
            except NotAnOverride as error:
                example = "model={name: kiosk, path: ./my-phi}"
                raise ConfigError(Problem(f"model: {error}", where, example)) from error
        else:
            what = f"{key} takes one name, not a {element.kind}"
            raise ConfigError(Problem(what, where, f"to sweep: -m {key}=a,b"))
    return tuple(value for number, value in enumerate(chosen) if value not in chosen[:number])
