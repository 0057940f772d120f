"""JSON Schemas of the files that people write: recipes, devices, models, evaluation, executor, and
the defaults of each backend.

They are for editors, in draft-07, which all of these read. They are made of the models that read
the files and of the backends' options, so that they take what phibuild takes, in its plain form:
8, not '8'; true, not yes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaValue

from phibuild.backends.registry import BACKENDS, backend
from phibuild.config.catalogue import Catalogue, ModelEntry
from phibuild.config.executors import ExecutorSettings, SlurmSettings
from phibuild.config.roots import shipped_root
from phibuild.errors import BackendError
from phibuild.planning.composed_schemas import composed
from phibuild.planning.option_schemas import options_schema
from phibuild.planning.recipe_schema import recipe_schema
from phibuild.planning.schema_parts import add_options, model_schema
from phibuild.schema import PRECISIONS, Device, Evaluation

FOLDER = "schema"
"""Where they lie in conf/."""
BACKEND = "backend-"
"""How the names of those of the backends' defaults begin."""
_DIALECT = "http://json-schema.org/draft-07/schema#"
_COUNT, _FIGURE = {"type": "integer", "minimum": 1}, {"type": "number", "exclusiveMinimum": 0}
_CONFIG = {
    **dict.fromkeys(
        (
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "vocab_size",
            "max_position_embeddings",
            "original_max_position_embeddings",
        ),
        _COUNT,
    ),
    **dict.fromkeys(("rms_norm_eps", "rope_theta", "partial_rotary_factor"), _FIGURE),
    "sliding_window": {"type": ["integer", "null"], "minimum": 1},
    "tie_word_embeddings": {"type": "boolean"},
}
"""The figures that are read of a config.json; one may hold whatever else."""
_OPTIONAL = {
    "num_key_value_heads",
    "original_max_position_embeddings",
    "rope_theta",
    "partial_rotary_factor",
    "sliding_window",
    "tie_word_embeddings",
}


def shipped_schemas() -> Path:
    """Return the folder of those that ship with phibuild."""
    return (shipped_root("conf") / FOLDER).resolve()


def usable_backends() -> list[str]:
    """Return the backends whose options are known: `phibuild doctor` tells of the others."""
    found = []
    for name in BACKENDS:
        with contextlib.suppress(BackendError):
            backend(name)
            found.append(name)
    return found


def schema_names(backends: Sequence[str]) -> dict[str, str]:
    """Return what each schema is of, by its name."""
    return {
        "recipe": "recipes/NAME.yaml",
        "device": "conf/device/NAME.yaml",
        "model": "conf/model/NAME.yaml",
        "evaluation": "conf/evaluation/NAME.yaml",
        "executor": "conf/executor/NAME.yaml",
        **{f"{BACKEND}{name}": f"conf/backend/{name}.yaml" for name in backends},
    }


def file_schema(name: str, catalogue: Catalogue, backends: Sequence[str]) -> JsonSchemaValue:
    """Return the schema `name`, which knows `backends` and suggests the catalogue's names."""
    if name.startswith(BACKEND):
        made = _backend(name.removeprefix(BACKEND))
    else:
        made = _MAKERS[name](catalogue, backends)
    about = schema_names(backends)[name]
    parts = made.pop("$defs", {})
    return {
        "$schema": _DIALECT,
        "title": about,
        **made,
        **({"$defs": dict(sorted(parts.items()))} if parts else {}),
    }


def _device(catalogue: Catalogue, backends: Sequence[str]) -> JsonSchemaValue:
    made = _named_schema(Device)
    properties = made["properties"]
    parts = made.setdefault("$defs", {})
    add_options(parts, catalogue, backends, variants=False)
    properties["backends"] = {
        "type": "object",
        "description": properties["backends"]["description"],
        "properties": {name: {"$ref": f"#/$defs/{name}"} for name in backends},
        "additionalProperties": False,
    }
    return made


def _model(catalogue: Catalogue, backends: Sequence[str]) -> JsonSchemaValue:
    made = _named_schema(ModelEntry)
    made["properties"]["config"].update(
        properties=_CONFIG,
        anyOf=[
            {"maxProperties": 0},
            {"required": [name for name in _CONFIG if name not in _OPTIONAL]},
        ],
    )
    some = {"type": "string", "minLength": 1}
    made["anyOf"] = [{"required": [key], "properties": {key: some}} for key in ("repo", "builtin")]
    return made


def _evaluation(catalogue: Catalogue, backends: Sequence[str]) -> JsonSchemaValue:
    return composed(model_schema(Evaluation))


def _executor(catalogue: Catalogue, backends: Sequence[str]) -> JsonSchemaValue:
    local, slurm = model_schema(ExecutorSettings), model_schema(SlurmSettings)
    return {
        "description": "How steps run.",
        "type": "object",
        "if": {"properties": {"kind": {"const": "slurm"}}, "required": ["kind"]},
        "then": composed(slurm),
        "else": composed(local),
    }


def _backend(name: str) -> JsonSchemaValue:
    spec = backend(name)
    options = {precision: options_schema(spec, precision) for precision in PRECISIONS}
    parts: JsonSchemaValue = {}
    for one in options.values():
        parts.update(one.pop("$defs", {}))
    return {
        "description": f"Defaults of the options of {spec.title}, by precision.",
        "type": "object",
        "properties": {key: {**one, "type": ["object", "null"]} for key, one in options.items()},
        "additionalProperties": False,
        "$defs": parts,
    }


_MAKERS: Mapping[str, Callable[[Catalogue, Sequence[str]], JsonSchemaValue]] = {
    "recipe": recipe_schema,
    "device": _device,
    "model": _model,
    "evaluation": _evaluation,
    "executor": _executor,
}


def _named_schema(model: type[BaseModel]) -> JsonSchemaValue:
    """Return the schema of a file whose name is the name."""
    made = model_schema(model)
    del made["properties"]["name"]
    made["required"].remove("name")
    return made
