"""What JSON Schema has to say of files that are composed: `${key}` stands for another key's value,
and whatever else `${` begins is refused."""

from __future__ import annotations

from pydantic.json_schema import JsonSchemaValue

from phibuild.config.yamlfile import PLAIN_INTERPOLATION

# Regular expressions as Python and JavaScript read them.
_OPEN = rf"^([^$]|\$(?!\{{)|{PLAIN_INTERPOLATION})*$"
_INTERPOLATION = {"type": "string", "pattern": f"^{PLAIN_INTERPOLATION}$"}
_SCALARS = {"integer", "number", "boolean", "null", "string"}
_LIMITED = {"pattern", "enum", "const"}
_ABOUT = ("description", "default", "doNotSuggest")


def composed(schema: JsonSchemaValue) -> JsonSchemaValue:
    """Return a schema whose texts may hold `${key}`, in which `${key}` may stand for any value of a
    key that is neither a mapping nor a list."""
    made = {key: _below(key, child) for key, child in schema.items()}
    if made.get("type") == "string" and not made.keys() & _LIMITED:
        made["pattern"] = _OPEN
    return made


def _below(key: str, value: object) -> object:
    """Return what stands at a keyword."""
    match key, value:
        case "properties", dict():
            return {name: _value(child) for name, child in value.items()}
        case "$defs" | "patternProperties", dict():
            return {name: composed(child) for name, child in value.items()}
        case "items" | "additionalProperties", dict():
            return composed(value)
        case "anyOf", list():
            return [composed(branch) for branch in value]
    return value


def _value(schema: JsonSchemaValue) -> JsonSchemaValue:
    """Return the schema of a key's value."""
    made = composed(schema)
    branches: list[JsonSchemaValue] = made.get("anyOf", [made])
    kinds = {kind for branch in branches for kind in _kinds(branch)}
    texts = any(branch.get("pattern") == _OPEN for branch in branches)
    if texts or kinds == {"null"} or not kinds <= _SCALARS:
        return made
    about: JsonSchemaValue = {key: made.pop(key) for key in _ABOUT if key in made}
    return {**about, "anyOf": [*made.get("anyOf", [made]), _INTERPOLATION]}


def _kinds(branch: JsonSchemaValue) -> list[str]:
    """Return the types that a branch names; "" where it names none."""
    match branch:
        case {"type": list(several)}:
            return several
        case {"type": str(one)}:
            return [one]
        case {"enum": _} | {"const": _}:
            return ["string"]
    return [""]
