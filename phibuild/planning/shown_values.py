"""JSON Schema in words: which values an option may have."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import JsonValue
from pydantic.json_schema import JsonSchemaValue

from phibuild.units import SIZE_TEXT as SIZE
from phibuild.units import UNIT_TEXT as SIZE_OF_A_DEVICE
from phibuild.worker.json_values import as_text

_LIMITS = {
    "minimum": "{} or more",
    "exclusiveMinimum": "more than {}",
    "maximum": "{} at most",
    "exclusiveMaximum": "less than {}",
}


def values_text(schema: JsonSchemaValue) -> str:
    """Return the values of a schema as people read them: "Q4_K_M, Q4_0 or null"."""
    found = list(dict.fromkeys(_values(schema)))
    if not found:
        return "any"
    *first, last = found
    return f"{', '.join(first)} or {last}" if first else last


def shown(value: JsonValue) -> str:
    """Return a value as it is written in YAML's flow style."""
    return as_text(value) or '""'


def _values(schema: JsonSchemaValue) -> Iterator[str]:
    match schema:
        case {"anyOf": list(branches)} if SIZE in branches or SIZE_OF_A_DEVICE in branches:
            yield "a size such as 8 GiB"
            if {"type": "null"} in branches:
                yield "null"
        case {"anyOf": list(branches)}:
            for branch in branches:
                yield from _values(branch)
        case {"pattern": str(pattern)} if pattern.startswith("^\\$\\{"):
            return  # ${key} may stand for any value
        case {"enum": list(values)}:
            yield from map(shown, values)
        case {"const": value}:
            yield shown(value)
        case {"type": "boolean"}:
            yield from ("true", "false")
        case {"type": "integer" | "number" as kind, **limits}:
            name = "a whole number" if kind == "integer" else "a number"
            said = [
                text.format(f"{limits[key]:,}") for key, text in _LIMITS.items() if key in limits
            ]
            yield name + (f" ({', '.join(said)})" if said else "")
        case {"type": "string"}:
            yield "text"
        case {"type": "array", "maxItems": 0}:
            yield "[]"
        case {"type": "array", "items": dict(items)}:
            yield f"a list of {values_text(items)}"
        case {"type": "array"}:
            yield "a list"
        case {"type": "object"} | {"$ref": _}:
            yield "a mapping"
        case {"type": list(kinds)}:
            for kind in kinds:
                yield from _values({**schema, "type": kind})
        case {"type": "null"}:
            yield "null"
