"""JSON that others have written: values of which nothing is known. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

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
