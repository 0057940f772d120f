"""What a command line changes in a composed recipe, and lists of precisions as mappings.

A recipe says `llamacpp: [int4, int8]` or `llamacpp: {int4: {type: Q4_0}, int8: }`: the list is the
mapping with no options. A list that comes later says which precisions there are; those that were
there keep their options. A mapping that comes later adds to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from phibuild.config.yamlfile import Path_
from phibuild.errors import ConfigError, Problem

COMMAND_LINE = "command line"


@dataclass(frozen=True)
class Edit:
    """A word of the command line that sets or deletes a key; `line` is the word itself. A delete
    with a value deletes the key only where it has this value."""

    key: str
    value: object
    line: str
    delete: bool = False

    @property
    def where(self) -> str:
        return f"{COMMAND_LINE}: {self.line}"


def kind_of(value: object) -> str:
    """Say what a container is."""
    return "a list" if isinstance(value, list) else "a mapping"


def is_precisions(path: Path_) -> bool:
    """Say whether precisions stand at a path: devices.DEVICE.BACKEND or backends.BACKEND."""
    return bool(path) and len(path) == {"devices": 3, "backends": 2}.get(str(path[0]))


def is_names(value: object) -> bool:
    """Say whether a value is a list that can be a mapping: texts, one at least."""
    return isinstance(value, list) and bool(value) and all(isinstance(v, str) for v in value)


def as_mappings(value: Any, path: Path_ = ()) -> Any:
    """Return a value of a configuration with each list of precisions below it as a mapping."""
    if is_precisions(path):
        if is_names(value):
            return {name: {} for name in value}
        if isinstance(value, Mapping):
            return {key: {} if child is None else child for key, child in value.items()}
    elif isinstance(value, Mapping):
        return {key: as_mappings(child, (*path, key)) for key, child in value.items()}
    return value


def apply_edit(data: dict[str, Any], edit: Edit) -> Path_:
    """Set or delete a key in place; return its path in the data. Raises ConfigError where there is
    nothing to delete, or no mapping to set it in."""
    path = _path(data, edit.key)
    at: Any = data
    for number, key in enumerate(path[:-1]):
        inner = at[key] if _holds(at, key, new=False) else None
        if inner is None and not edit.delete:
            inner = at[key] = {}
        if not _holds(inner, path[number + 1], new=not edit.delete):
            if edit.delete:
                raise _nothing_to_delete(edit)
            shown = ".".join(str(part) for part in path[: number + 1])
            what = f"{edit.key} cannot be set: {shown} is {inner!r}, not a mapping"
            raise ConfigError(Problem(what, edit.where))
        at = inner
    last = path[-1]
    if not edit.delete:
        old = at[last] if _holds(at, last, new=False) else None
        at[last] = _merged(old, edit.value, path)
    elif not _holds(at, last, new=False):
        raise _nothing_to_delete(edit)
    elif edit.value is not None and at[last] != edit.value:
        what = f"the value of {edit.key} is {at[last]!r}, not {edit.value!r}"
        raise ConfigError(Problem(what, edit.where, f"~{edit.key} deletes it whatever it is"))
    else:
        del at[last]
    return path


def _nothing_to_delete(edit: Edit) -> ConfigError:
    what = f"there is no key {edit.key!r} to delete"
    return ConfigError(Problem(what, edit.where, "'--cfg job' shows the keys"))


def _holds(value: object, key: str | int, *, new: bool) -> bool:
    """Say whether a value has the key, or may be given it (`new`)."""
    if isinstance(value, list):
        return isinstance(key, int) and key < len(value)
    return isinstance(value, dict) and (new or key in value)


def _path(data: dict[str, Any], key: str) -> Path_:
    """Return the keys that a dotted text means: a name with dots in it, where the data has one,
    and the numbers of a list's entries."""
    left, path = key.split("."), list[str | int]()
    at: Any = data
    while left:
        size = 1
        part: str | int = left[0]
        if isinstance(at, dict):
            lengths = [1, *range(len(left), 1, -1)]
            size = next((n for n in lengths if ".".join(left[:n]) in at), 1)
            part = ".".join(left[:size])
        elif isinstance(at, list) and left[0].isdecimal() and len(left[0]) < 10:
            part = int(left[0])
        path.append(part)
        del left[:size]
        at = at[part] if _holds(at, part, new=False) else None
    return tuple(path)


def _merged(old: Any, value: Any, path: Path_) -> Any:
    """Return a value of the command line merged over what stood at its path."""
    if is_precisions(path) and is_names(value):
        kept = old if isinstance(old, dict) else {}
        return {name: kept.get(name, {}) for name in value}
    if not isinstance(value, dict):
        return value
    kept = dict(old) if isinstance(old, dict) else {}
    for key, child in value.items():
        kept[key] = _merged(kept.get(key), child, (*path, key))
    return as_mappings(kept, path)
