"""JSON Schema of pydantic models with the docstrings of their fields as descriptions."""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import json
import textwrap
from collections.abc import Mapping

from pydantic import BaseModel, JsonValue
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core.core_schema import ModelSchema

from phibuild.schema import Frozen


class DescribingGenerator(GenerateJsonSchema):
    """Keys in the order of the models; no titles that repeat names; what stands below a field in
    its class is its description."""

    def field_title_should_be_set(self, schema: object) -> bool:
        return False

    def sort(self, value: JsonSchemaValue, parent_key: str | None = None) -> JsonSchemaValue:
        return value

    def model_schema(self, schema: ModelSchema) -> JsonSchemaValue:
        """Add the docstrings of the fields, which no other verb has to read the source for."""
        made = super().model_schema(schema)
        properties = made.get("properties", {})
        for name, text in descriptions(schema["cls"]).items():
            properties[name]["description"] = text
        return made


def descriptions(model: type[BaseModel]) -> dict[str, str]:
    """Return the docstrings of a model's fields, inherited ones too, by their names in JSON."""
    found: dict[str, str] = {}
    for cls in reversed(model.__mro__):
        if issubclass(cls, BaseModel) and cls not in (BaseModel, Frozen):
            found.update(_field_docstrings(cls))
    return found


@functools.cache
def _field_docstrings(model: type[BaseModel]) -> Mapping[str, str]:
    """Return the strings that stand below a class's own fields, by the names of these in JSON; none
    where the source is not there."""
    try:
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(model))).body
    except (OSError, TypeError, SyntaxError):
        return {}
    found = {}
    for field, below in itertools.pairwise(ast.iter_child_nodes(tree)):
        match field, below:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ) if name in model.model_fields:
                key = model.model_fields[name].serialization_alias or name
                found[key] = " ".join(inspect.cleandoc(text).split())
    return found


def schema_json(schema: JsonSchemaValue) -> str:
    """Return a schema as the text of a file, descriptions without line ends."""
    return json.dumps(_on_one_line(schema), indent=2, ensure_ascii=False) + "\n"


def _on_one_line(value: JsonValue, key: str = "") -> JsonValue:
    """Return a schema, or what stands at a key of it, whose descriptions have no line ends."""
    match value:
        case str() if key == "description":
            return " ".join(value.split())
        case list():
            return [_on_one_line(one) for one in value]
        case dict():
            return {name: _on_one_line(one, name) for name, one in value.items()}
    return value
