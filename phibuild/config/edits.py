"""What a command line changes in a composed recipe, and lists of precisions as mappings.

A recipe says `llamacpp: [int4, int8]` or `llamacpp: {int4: {type: Q4_0}, int8: }`: the list is the
mapping with no options. A list that comes later says which precisions there are; those that were
there keep their options. A mapping that comes later adds to them.

The options of a precision of a device may be a list too: of mappings, one a variant.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

from phibuild.config.yamlfile import Data, KeyPath
from phibuild.errors import ConfigError, Problem
from phibuild.worker.json_values import is_texts, object_or_empty

COMMAND_LINE = "command line"


@dataclass(frozen=True)
class Edit:
    """A word of the command line that sets or deletes a key; `line` is the word itself. A delete
    with a value deletes the key only where it has this value. `values` are those of a sweep, whose
    combinations have one each."""

    key: str
    value: object
    line: str
    delete: bool = False
    values: tuple[object, ...] = ()

    @property
    def where(self) -> str:
        return f"{COMMAND_LINE}: {self.line}"


def combinations(edits: Sequence[Edit]) -> Iterator[tuple[Edit, ...]]:
    """Yield the edits with every combination of the values that are swept; the last sweep's change
    first."""
    choices = [
        [replace(edit, value=value, values=()) for value in edit.values] or [edit] for edit in edits
    ]
    return itertools.product(*choices)


def kind_of(value: object) -> str | None:
    """Say what a container is; None if it is none."""
    match value:
        case list():
            return "a list"
        case dict():
            return "a mapping"
    return None


def is_precisions(path: KeyPath) -> bool:
    """Say whether precisions stand at a path: devices.DEVICE.BACKEND or backends.BACKEND."""
    return bool(path) and len(path) == {"devices": 3, "backends": 2}.get(str(path[0]))


def is_variants(path: KeyPath) -> bool:
    """Say whether a path is devices.DEVICE.BACKEND.PRECISION, where a list has several variants."""
    return path[:1] == ("devices",) and is_precisions(path[:-1])


def is_names(value: object) -> TypeGuard[list[str]]:
    """Say whether a value is a list that can be a mapping: texts, one at least."""
    return is_texts(value) and bool(value)


def as_mappings(value: Any, path: KeyPath = ()) -> Any:
    """Return a value of a configuration with each list of precisions below it as a mapping."""
    precisions = is_precisions(path)
    if precisions and is_names(value):
        return {name: {} for name in value}
    match value:
        case Mapping() if precisions:
            return {key: _as_options(child) for key, child in value.items()}
        case Mapping():
            return {key: as_mappings(child, (*path, key)) for key, child in value.items()}
    return value


def _as_options(value: object) -> object:
    """Return the options of a precision, or of each of its variants, with {} for null."""
    if isinstance(value, list):
        return [{} if entry is None else entry for entry in value]
    return {} if value is None else value


def apply_edit(data: Data, edit: Edit) -> KeyPath:
    """Set or delete a key in place; return its path in the data. Raises ConfigError where there is
    nothing to delete, or no mapping to set it in."""
    path = _path(data, edit.key)
    node: Any = data
    for number, key in enumerate(path[:-1]):
        child = node[key] if _holds(node, key, new=False) else None
        if child is None and not edit.delete:
            child = node[key] = {}
        if not _holds(child, path[number + 1], new=not edit.delete):
            if edit.delete:
                raise _nothing_to_delete(edit)
            raise _no_mapping(edit, path[: number + 1], child)
        node = child
    last = path[-1]
    if not edit.delete:
        old = node[last] if _holds(node, last, new=False) else None
        node[last] = _merged(old, deepcopy(edit.value), path)
    elif not _holds(node, last, new=False):
        raise _nothing_to_delete(edit)
    elif edit.value is not None and node[last] != edit.value:
        what = f"the value of {edit.key} is {node[last]!r}, not {edit.value!r}"
        raise ConfigError(Problem(what, edit.where, f"~{edit.key} deletes it whatever it is"))
    else:
        del node[last]
    return path


def _no_mapping(edit: Edit, path: KeyPath, value: object) -> ConfigError:
    shown = ".".join(str(part) for part in path)
    what = f"{edit.key} cannot be set: {shown} is {value!r}, not a mapping"
    remedy = None
    if isinstance(value, list) and value:
        what = f"{edit.key} cannot be set: {shown} is a list of {len(value)}, not a mapping"
        numbers = ", ".join(f"{shown}.{number}" for number in range(len(value)))
        remedy = f"its entries are {numbers}; {shown}=[...] sets all"
    return ConfigError(Problem(what, edit.where, remedy))


def _nothing_to_delete(edit: Edit) -> ConfigError:
    what = f"there is no key {edit.key!r} to delete"
    return ConfigError(Problem(what, edit.where, "'--cfg job' shows the keys"))


def _holds(value: object, key: str | int, *, new: bool) -> bool:
    """Say whether a value has the key, or may be given it (`new`)."""
    match value, key:
        case list() as entries, int() as number:
            return number < len(entries)
        case dict() as children, _:
            return new or key in children
    return False


def _path(data: Data, key: str) -> KeyPath:
    """Return the keys that a dotted text means: a name with dots in it, where the data has one,
    the numbers of a list's entries, and what a limit is for (int4.Q4_K_M), which is one key."""
    remaining, path = key.split("."), list[str | int]()
    node: Any = data
    while remaining:
        size = 1
        part: str | int = remaining[0]
        match node:
            case dict() | None if path[:1] == ["gates"] and len(path) == 2:
                size, part = len(remaining), ".".join(remaining)
            case dict():
                lengths = [1, *range(len(remaining), 1, -1)]
                size = next((n for n in lengths if ".".join(remaining[:n]) in node), 1)
                part = ".".join(remaining[:size])
            case list() if remaining[0].isdecimal() and len(remaining[0]) < 10:
                part = int(remaining[0])
        path.append(part)
        del remaining[:size]
        node = node[part] if _holds(node, part, new=False) else None
    return tuple(path)


def _merged(old: Any, value: Any, path: KeyPath) -> Any:
    """Return a value of the command line merged over what stood at its path."""
    before = object_or_empty(old)
    match value:
        case [*names] if is_precisions(path) and is_names(value):
            return {name: before.get(name, {}) for name in names}
        case dict():
            given = {key: _merged(before.get(key), one, (*path, key)) for key, one in value.items()}
            return as_mappings({**before, **given}, path)
    return value
