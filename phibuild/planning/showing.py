"""What a device, a recipe, a backend or a model says, key by key: values, defaults, meaning, and
where what holds was written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from pydantic import JsonValue
from pydantic.json_schema import JsonSchemaValue

from phibuild.backends.registry import backend
from phibuild.config.catalogue import Catalogue
from phibuild.config.compose import compose_build
from phibuild.config.recipe import Recipe
from phibuild.config.validation import locate
from phibuild.config.yamlfile import KeyPath, YamlFile
from phibuild.errors import ConfigError
from phibuild.planning.cell_requests import read_cell_requests
from phibuild.planning.file_schemas import file_schema, usable_backends
from phibuild.planning.option_schemas import is_idle, options_schema
from phibuild.planning.options import Expansion, option_layers
from phibuild.planning.shown_values import values_text
from phibuild.schema import PRECISIONS
from phibuild.worker.json_values import object_or_empty


class Key(NamedTuple):
    """One key: its place with dots, what it may be, whether it must be there, what it is where
    nobody says it, what it means; what it is here, where that was written (None: nowhere), and
    what it is instead of: values with their places."""

    key: str
    values: str
    required: bool
    default: JsonValue
    meaning: str
    value: JsonValue = None
    where: str | None = None
    over: tuple[tuple[JsonValue, str | None], ...] = ()


def file_keys(kind: str, file: YamlFile, catalogue: Catalogue) -> Iterator[Key]:
    """Yield the keys of a device's or a model's file, which is right."""
    schema = file_schema(kind, catalogue, usable_backends())
    data = file.data()

    def visit(
        part: JsonSchemaValue, path: KeyPath, values: Mapping[str, JsonValue]
    ) -> Iterator[Key]:
        for name, below in part.get("properties", {}).items():
            here = (*path, name)
            inner = _resolved(below, schema)
            value = values.get(name)
            if inner.get("properties") and name != "backends" and (value or not path):
                yield from visit(inner, here, object_or_empty(value))
                continue
            where = locate([file], here) if name in values else None
            key = _key(here, below, value, where)
            yield key._replace(required=name in part.get("required", ()))

    yield from visit(schema, (), data)


def backend_keys(name: str, catalogue: Catalogue) -> Iterator[Key]:
    """Yield the options of a backend at each precision: PRECISION.OPTION."""
    spec, defaults = backend(name), catalogue.backend_defaults(name)
    file = catalogue.backend_file(name)
    for precision in PRECISIONS:
        given = defaults.get(precision, {})
        properties = options_schema(spec, precision, given)["properties"]
        for option, schema in properties.items():
            if not is_idle(schema):
                path = (precision, option)
                where = locate([file], path) if file and option in given else None
                yield _key(path, schema, schema.get("default"), where)


def recipe_keys(name: str, catalogue: Catalogue) -> Iterator[Key]:
    """Yield the keys of a recipe as it is composed, and the options that hold at each of its cells.
    Raises ConfigError with what is wrong with it."""
    composition = compose_build([f"recipe={name}"], catalogue, sweep=False)
    recipe = composition.recipes[0]
    schema = file_schema("recipe", catalogue, usable_backends())
    config = recipe.config.model_dump(mode="json")
    state = Expansion(composition, catalogue, list(composition.problems))
    requests = list(read_cell_requests(recipe, state))
    if state.problems:
        raise ConfigError(*state.problems)
    for key, below in schema["properties"].items():
        part = _resolved(below, schema)
        if key in ("devices", "backends", "defaults"):
            continue
        if key in ("gates", "evaluation", "executor"):
            values = object_or_empty(config[key])
            for option, inner in part["properties"].items():
                if option in values:
                    path = (key, option)
                    yield _key(path, inner, values[option], _written(recipe, path))
            continue
        yield _key((key,), below, config[key], _written(recipe, (key,)))
    for request in requests:
        options = request.options.model_dump(mode="json") if request.options else {}
        part = schema["$defs"][f"{request.backend}.{request.precision}"]["properties"]
        layers = option_layers(
            request.backend, request.precision, state, state.devices[request.device], recipe,
            request.path, request.own,
        )  # fmt: skip
        for option, value in options.items():
            if option in part and not is_idle(part[option]):
                key = _key((*request.path, option), part[option], value, request.where(option))
                said = [(given[option], at(option)) for given, at in layers if option in given]
                yield key._replace(over=tuple(reversed(said[:-1])))


def _written(recipe: Recipe, path: KeyPath) -> str | None:
    """Return where a key of a recipe was written; None if no file has it."""
    files = (*recipe.files, *recipe.group_files)
    if any(file.find(path)[0] == len(path) for file in files):
        return recipe.where(path)
    return None


def _key(path: KeyPath, schema: JsonSchemaValue, value: JsonValue, where: str | None) -> Key:
    key = ".".join(map(str, path))
    meaning = schema.get("description", "")
    return Key(key, values_text(schema), False, schema.get("default"), meaning, value, where)


def _resolved(part: JsonSchemaValue, schema: JsonSchemaValue) -> JsonSchemaValue:
    """Return a part, or the definition that it refers to, with what it says of itself."""
    if "$ref" not in part:
        return part
    return {**schema["$defs"][part["$ref"].rsplit("/", 1)[-1]], **part}
