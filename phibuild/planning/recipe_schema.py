"""The JSON Schema of recipes."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic.json_schema import JsonSchemaValue

from phibuild.config.catalogue import Catalogue
from phibuild.config.executors import ExecutorSettings, SlurmSettings
from phibuild.config.model_choice import ModelChoice
from phibuild.config.recipe import BuildConfig
from phibuild.planning.composed_schemas import composed
from phibuild.planning.schema_parts import add_options, model_schema
from phibuild.schema import PRECISIONS

_NAME = r"[^\x00-/:-@\[-`{-\x7f]"  # a letter or a digit, as far as ASCII goes
_NAMES: JsonSchemaValue = {
    "type": "array",
    "items": {"enum": list(PRECISIONS)},
    "minItems": 1,
    "description": "Precisions, each with the defaults of its options.",
}


def recipe_schema(catalogue: Catalogue, backends: Sequence[str]) -> JsonSchemaValue:
    """Return the schema of recipes."""
    made = model_schema(BuildConfig)
    parts, properties = made["$defs"], made["properties"]
    model, choice = properties["model"], parts[ModelChoice.__name__]
    model.pop("$ref", None)
    model["anyOf"] = [
        # Whatever YAML takes a name for: 2024.10 is one.
        {"type": "string", "minLength": 1, "examples": sorted(catalogue.model_files)},
        {"type": ["number", "boolean"]},
        choice,
    ]
    choice["anyOf"] = [
        {
            "required": ["path"],
            "not": {"anyOf": [{"required": ["base"]}, {"required": ["adapter"]}]},
        },
        {"required": ["base", "adapter"]},
    ]
    for key in choice["properties"]:
        choice["properties"][key] = {
            **choice["properties"][key],
            "anyOf": [{"type": "string", "minLength": 1}, {"type": ["number", "boolean", "null"]}],
        }
    choice["properties"]["name"]["anyOf"][0] = {"type": "string", "pattern": _NAME}
    del parts[ModelChoice.__name__]
    executor = properties["executor"]
    executor.pop("anyOf", None)
    executor.pop("default", None)
    executor.update(_settings(made))
    add_options(parts, catalogue, backends, variants=True)
    properties["devices"] = {
        "type": "object",
        "description": properties["devices"]["description"],
        "properties": {name: {"$ref": "#/$defs/device"} for name in sorted(catalogue.device_files)},
        "additionalProperties": {"$ref": "#/$defs/device"},
        "minProperties": 1,
    }
    parts["device"] = {
        "type": "object",
        "description": "backend -> precisions, or a mapping of them to options.",
        "properties": {name: {"anyOf": [_NAMES, {"$ref": f"#/$defs/{name}"}]} for name in backends},
        "additionalProperties": False,
        "minProperties": 1,
    }
    properties["backends"] = {
        "type": "object",
        "description": properties["backends"]["description"],
        "properties": {name: {"$ref": f"#/$defs/{name}.all"} for name in backends},
        "additionalProperties": False,
    }
    made["properties"] = {
        "defaults": {
            "type": "array",
            "items": {"type": ["string", "number"], "examples": _recipe_names(catalogue)},
            "uniqueItems": True,
            "description": "Recipes that this one is merged over, itself where _self_ stands.",
        },
        **properties,
    }
    del made["required"]  # a recipe may be a part of others, in whose defaults lists it stands
    made["description"] = "What to build for which devices, and what it must keep."
    return composed(made)


def _recipe_names(catalogue: Catalogue) -> list[str]:
    return ["_self_", *sorted(catalogue.recipe_files)]


def _settings(made: JsonSchemaValue) -> JsonSchemaValue:
    """Return what a recipe may say of whatever executor is chosen; takes the parts out of it."""
    local = made["$defs"].pop(ExecutorSettings.__name__)["properties"]
    slurm = made["$defs"].pop(SlurmSettings.__name__)["properties"]
    known = {**slurm, **local, "kind": {"enum": ["local", "slurm"], "doNotSuggest": True}}
    del known["setup"]  # which a recipe may not hold
    for key in known.keys() & {"cores", "timeout"}:
        known[key].pop("default", None)  # each executor has its own
    return {"type": "object", "properties": known, "additionalProperties": False}
