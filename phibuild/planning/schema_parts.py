"""Parts of JSON Schemas that several files have: a model's, and the options of all backends."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaValue

from phibuild.backends.registry import backend
from phibuild.config.catalogue import Catalogue
from phibuild.config.describing import DescribingGenerator
from phibuild.planning.option_schemas import options_schema
from phibuild.schema import PRECISIONS


def model_schema(model: type[BaseModel]) -> JsonSchemaValue:
    """Return the schema of a file that a model reads."""
    made = model.model_json_schema(mode="validation", schema_generator=DescribingGenerator)
    made.pop("title", None)
    for part in made.get("$defs", {}).values():
        part.pop("title", None)
    return made


def add_options(
    parts: JsonSchemaValue, catalogue: Catalogue, backends: Sequence[str], *, variants: bool
) -> None:
    """Add, for each backend, its mapping of precisions to options; with `variants` one in which
    they may be a list, and NAME.all, in which they may not."""
    for name in backends:
        spec, defaults = backend(name), catalogue.backend_defaults(name)
        precisions, single = {}, {}
        for precision in PRECISIONS:
            options = options_schema(spec, precision, defaults.get(precision))
            parts.update(options.pop("$defs", {}))
            parts[f"{name}.{precision}"] = options
            one = {"$ref": f"#/$defs/{name}.{precision}"}
            none = {"anyOf": [one, {"type": "null"}]}
            several = {"type": "array", "items": none, "minItems": 1}
            single[precision] = none if variants else one
            precisions[precision] = {"anyOf": [one, {"type": "null"}, several]}
        mapping = {"type": "object", "additionalProperties": False, "minProperties": 1}
        about = f"{spec.title}: precision -> options."
        parts[name] = {
            **mapping, "description": about, "properties": precisions if variants else single
        }  # fmt: skip
        if variants:
            parts[f"{name}.all"] = {**mapping, "description": about, "properties": single}
