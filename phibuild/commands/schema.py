"""`phibuild schema`: the JSON Schema of every document that phibuild writes or prints."""

from __future__ import annotations

import argparse
import json

from pydantic import BaseModel, JsonValue
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core.core_schema import WithDefaultSchema
from tabulate import tabulate

from phibuild.commands import answers
from phibuild.commands.plan_answer import PlanAnswer
from phibuild.errors import EXIT_OK, ConfigError, Problem, suggest
from phibuild.report.documents import Report
from phibuild.store.documents import ArtifactManifest, Manifest, StoredMeasure
from phibuild.system.files import write_atomically
from phibuild.system.places import user_path

DOCUMENTS: dict[str, tuple[type[BaseModel], str]] = {
    "report": (Report, "report.json of a run; build --json, report --json"),
    "manifest": (ArtifactManifest, "manifest.json of an artifact"),
    "reference": (Manifest, "manifest.json of what the original left in the store"),
    "measure": (StoredMeasure, "measures/<key>.json of the store"),
    "plan": (PlanAnswer, "plan --json"),
    "verify": (answers.VerifyAnswer, "verify --json"),
    "doctor": (answers.DoctorAnswer, "doctor --json"),
    "list-recipes": (answers.RecipeList, "list recipes --json"),
    "list-devices": (answers.DeviceList, "list devices --json"),
    "list-backends": (answers.BackendList, "list backends --json"),
    "list-models": (answers.ModelList, "list models --json"),
    "list-precisions": (answers.PrecisionList, "list precisions --json"),
    "store-list": (answers.StoreList, "store list --json"),
    "store-du": (answers.StoreUse, "store du --json"),
    "store-gc": (answers.StoreRemoval, "store gc --json"),
    "toolchain-list": (answers.ToolchainList, "toolchain list --json"),
}
"""Each document by its name in docs/schema, and where it is met."""


class _Generator(GenerateJsonSchema):
    """Keys in the order of the models; no titles that repeat names; no defaults, which are for
    readers of older documents alone."""

    def field_title_should_be_set(self, schema: object) -> bool:
        return False

    def sort(self, value: JsonSchemaValue, parent_key: str | None = None) -> JsonSchemaValue:
        return value

    def default_schema(self, schema: WithDefaultSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])


def run(arguments: argparse.Namespace) -> int:
    """Print a schema, write one or all of them into a folder, or say which there are."""
    wanted = arguments.what
    if wanted is not None and wanted not in DOCUMENTS:
        problem = f"unknown document {wanted!r}"
        raise ConfigError(Problem(problem, "command line", suggest(wanted, DOCUMENTS)))
    if arguments.write is not None:
        folder = user_path(arguments.write, "--write")
        folder.mkdir(parents=True, exist_ok=True)
        for name in [wanted] if wanted else DOCUMENTS:
            write_atomically(folder / f"{name}.json", schema_text(name))
    elif wanted:
        print(schema_text(wanted), end="")
    else:
        rows = [(name, where) for name, (_, where) in DOCUMENTS.items()]
        print(tabulate(rows, headers=("schema", "of"), disable_numparse=True))
    return EXIT_OK


def schema_text(name: str) -> str:
    """Return the JSON Schema of a document of DOCUMENTS."""
    model, where = DOCUMENTS[name]
    schema = model.model_json_schema(mode="serialization", schema_generator=_Generator)
    parts = schema.pop("$defs", {})
    description = schema.pop("description", "")
    full = {
        "$schema": GenerateJsonSchema.schema_dialect,
        "title": where,
        "description": description,
        **{key: value for key, value in schema.items() if key != "title"},
        **({"$defs": dict(sorted(parts.items()))} if parts else {}),
    }
    return json.dumps(_on_one_line(full), indent=2, ensure_ascii=False) + "\n"


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
