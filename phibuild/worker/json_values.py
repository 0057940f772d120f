"""JSON that others have written: values of which nothing is known. Standard library only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeAlias, TypeGuard

JsonObject: TypeAlias = Mapping[str, Any]
"""An object of somebody else's file, such as a config.json, as it is read."""
JsonDict: TypeAlias = dict[str, Any]
"""One that is changed or made, to be written."""


def as_object(value: object, name: str) -> JsonObject:
    """Return a JSON object. Raises ValueError, beginning with its name, for anything else."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} must be an object, not {value!r}")
    return value


def as_ids(value: object) -> list[int]:
    """Return the token ids that a configuration gives as a list, as one number, or not (null)."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]  # type: ignore[list-item]


def object_or_empty(value: object) -> JsonObject:
    """Return a JSON object, {} for anything else: of a key that is only looked at."""
    return value if isinstance(value, Mapping) else {}


def parse_object(text: str | bytes) -> JsonDict:
    """Return the object that JSON text holds. Raises NoObjectError for other JSON, any other
    ValueError or RecursionError for what is none."""
    data = json.loads(text)
    if not isinstance(data, dict):
        raise NoObjectError("not a JSON object")
    return data


class NoObjectError(ValueError):
    """JSON, but no object."""


def as_text(value: object) -> str:
    """Return a text as it is, any other value as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def is_texts(value: object) -> TypeGuard[list[str]]:
    """Return whether a value is a list of texts; an empty one is."""
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def is_whole_number(value: object) -> TypeGuard[int]:
    """Return whether a value is a JSON number without a fraction: true and 1.0 are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a value is a JSON number: true is none."""
    return isinstance(value, float) or is_whole_number(value)
