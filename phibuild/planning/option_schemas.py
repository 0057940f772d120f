"""JSON Schema of a backend's options at each precision: its options' types, less the values that a
precision cannot have, with the defaults of its conf file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel, JsonValue, ValidationError
from pydantic.json_schema import JsonSchemaValue

from phibuild.backends.base import Backend
from phibuild.backends.calibration import EMBEDDED
from phibuild.backends.quality import contradiction
from phibuild.config.describing import DescribingGenerator
from phibuild.schema import Options, Precision
from phibuild.worker.json_values import object_or_empty


class _Value(NamedTuple):
    """An option with one of its values, or with one that stands for those that are not counted."""

    option: str
    value: JsonValue


def options_schema(
    spec: Backend, precision: Precision | None = None, defaults: Options | None = None
) -> JsonSchemaValue:
    """Return the schema of a backend's options: of all, or of those of a precision."""
    schema = spec.options.model_json_schema(
        mode="validation",
        schema_generator=DescribingGenerator,
        ref_template=f"#/$defs/{spec.name}.{{model}}",
    )
    schema.pop("title", None)
    schema["description"] = f"Options of {spec.title}" + (f", {precision}." if precision else ".")
    properties: dict[str, JsonSchemaValue] = schema.setdefault("properties", {})
    if precision:
        impossible = list(_impossible(spec, precision, properties))
        for name, option in list(properties.items()):
            taken = [value for other, value in impossible if other == name]
            left = _without(option, taken) if taken else option
            if left is None:
                del properties[name]
            else:
                properties[name] = left
    for name, value in (defaults or {}).items():
        if name in properties:
            properties[name]["default"] = value
    return schema


def values_of(schema: Mapping[str, JsonValue]) -> list[JsonValue]:
    """Return the values of a schema that can be counted: of its branches, but null."""
    match schema:
        case {"enum": list(values)}:
            return values
        case {"const": value}:
            return [value]
        case {"type": "boolean"}:
            return [True, False]
        case {"anyOf": list(branches)}:
            return [value for branch in branches for value in values_of(object_or_empty(branch))]
    return []


def is_idle(schema: Mapping[str, JsonValue]) -> bool:
    """Say whether an option has no value at its precision but null, or a list of nothing."""
    return "doNotSuggest" in schema


def _impossible(
    spec: Backend, precision: Precision, properties: Mapping[str, JsonSchemaValue]
) -> Iterator[_Value]:
    """Yield the values that cannot be at a precision: it is contradicted by each of them alone, and
    beside whatever value of another option."""
    values = [
        _Value(name, value) for name, schema in properties.items() for value in _tried(schema)
    ]
    for one in values:
        alone = {one.option: one.value}
        if _contradicted(spec, precision, alone) and all(
            _contradicted(spec, precision, {**alone, other.option: other.value})
            for other in values
            if other.option != one.option
        ):
            yield one


def _tried(schema: JsonSchemaValue) -> list[JsonValue]:
    """Return the values that can be counted, or one in place of all that cannot."""
    counted = values_of(schema)
    if counted:
        return counted
    branches = [branch for branch in schema.get("anyOf", [schema]) if branch.get("type") != "null"]
    branch: dict[str, Any] = branches[0] if branches else {}
    low = float(branch.get("minimum", branch.get("exclusiveMinimum", 0)))
    match branch:
        case {"type": "array", "items": items}:
            return [[value] for value in values_of(items)[:1]]
        case {"type": "object"}:
            return [{".": ""}]
        case {"type": "string"}:
            return [EMBEDDED]
        case {"type": "integer"}:
            return [branch.get("minimum", 1)]
        case {"type": "number"}:
            return [
                (low + float(branch.get("maximum", branch.get("exclusiveMaximum", low + 2)))) / 2
            ]
    return []


def _contradicted(spec: Backend, precision: Precision, given: Options) -> bool:
    """Say whether options contradict a precision; of those that are no options nothing is said."""
    try:
        options: BaseModel = spec.options.model_validate(given)
    except ValidationError:
        return False
    return contradiction(spec, precision, options, None) is not None


def _without(schema: JsonSchemaValue, taken: list[JsonValue]) -> JsonSchemaValue | None:
    """Return a schema without some of its values; None where there are no others. An option that
    has none that says anything is not worth an editor's suggestion."""
    known = {key: value for key, value in schema.items() if key in ("description", "default")}
    branches = [
        left
        for branch in schema.get("anyOf", [schema])
        if (left := _branch_without(branch, taken)) is not None
    ]
    match branches:
        case []:
            return None
        case [{"type": "null"} | {"maxItems": 0} as nothing]:
            return {**known, **nothing, "doNotSuggest": True}
        case [only]:
            return {**known, **only}
    return {**known, "anyOf": branches}


def _branch_without(branch: JsonSchemaValue, taken: list[JsonValue]) -> JsonSchemaValue | None:
    """Return a branch without some values, None if it has no others."""
    if branch.get("type") == "null":
        return branch
    values = values_of(branch)
    kept = [value for value in values if value not in taken]
    if not kept:  # or one that stood for all of the branch
        return {"type": "array", "maxItems": 0} if branch.get("type") == "array" else None
    return branch if kept == values else {**branch, "enum": kept}
