"""The bases of all models, precisions, and sizes as people write them."""

from __future__ import annotations

import json
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
)

from phibuild.units import SIZE_TEXT, parse_size
from phibuild.worker.json_values import JsonDict

Precision = Literal["int4", "int8", "fp16", "fp32"]
PRECISIONS: tuple[Precision, ...] = ("int4", "int8", "fp16", "fp32")
Options = JsonDict
Size = Annotated[
    int,
    BeforeValidator(parse_size),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 0}, SIZE_TEXT]}, mode="validation"),
]
PositiveSize = Annotated[
    int,
    BeforeValidator(parse_size),
    Field(gt=0),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, SIZE_TEXT]}, mode="validation"),
]


class Frozen(BaseModel):
    """Base of all models: unknown keys are errors, values do not change."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_serialization_defaults_required=True,
        defer_build=True,  # most verbs need few of the models
    )


class Document(Frozen):
    """Base of what phibuild writes as JSON for other programs, and of its parts. The docstrings of
    the fields stand in docs/schema (commands/schema.py)."""

    model_config = ConfigDict(strict=True)

    @classmethod
    def read(cls, data: object) -> Self:
        """Return the document that JSON data is. What another version of phibuild has written
        besides is left out. Raises ValueError, with the place in the document, if it is none."""
        try:
            return cls.model_validate(data, extra="ignore")
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"])) or "it"
            raise ValueError(f"{place}: {first['msg'].lower()}") from None


def document_text(document: BaseModel, *, sort_keys: bool = False) -> str:
    """Return a document, or a list or mapping of documents, as JSON."""
    data = document.model_dump(by_alias=True)  # mode="json" would change names that are no UTF-8
    return json.dumps(data, indent=1, sort_keys=sort_keys, allow_nan=False)
