"""`phibuild schema`: the JSON Schema of every document that phibuild writes or prints, and of every
file that it reads."""

from __future__ import annotations

import argparse
from pathlib import Path

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core.core_schema import WithDefaultSchema
from tabulate import tabulate

from phibuild.backends.registry import BACKENDS, SHIPPED
from phibuild.commands import answers
from phibuild.commands.plan_answer import PlanAnswer
from phibuild.config.catalogue import Catalogue
from phibuild.config.describing import DescribingGenerator, schema_json
from phibuild.errors import EXIT_OK, ConfigError, Problem, suggest
from phibuild.planning.file_schemas import (
    file_schema,
    schema_names,
    shipped_schemas,
    usable_backends,
)
from phibuild.report.diff.documents import Difference
from phibuild.report.documents import Confirmation, Report
from phibuild.store.documents import ArtifactManifest, Manifest, StoredMeasure
from phibuild.system.files import write_atomically
from phibuild.system.places import user_path

DOCUMENTS: dict[str, tuple[type[BaseModel], str]] = {
    "report": (Report, "report.json of a run; build --json, report --json"),
    "confirmed": (Confirmation, "confirmed.json of a run that later builds found nothing new to"),
    "diff": (Difference, "diff --json"),
    "manifest": (ArtifactManifest, "manifest.json of an artifact"),
    "reference": (Manifest, "manifest.json of what the original left in the store"),
    "measure": (StoredMeasure, "measures/<key>.json of the store"),
    "plan": (PlanAnswer, "plan --json"),
    "verify": (answers.VerifyAnswer, "verify --json"),
    "show": (answers.ShowAnswer, "show --json"),
    "check": (answers.CheckAnswer, "check --json"),
    "doctor": (answers.DoctorAnswer, "doctor --json"),
    "list-recipes": (answers.RecipeList, "list recipes --json"),
    "list-devices": (answers.DeviceList, "list devices --json"),
    "list-backends": (answers.BackendList, "list backends --json"),
    "list-models": (answers.ModelList, "list models --json"),
    "list-precisions": (answers.PrecisionList, "list precisions --json"),
    "store-list": (answers.StoreList, "store list --json"),
    "store-du": (answers.StoreUse, "store du --json"),
    "store-gc": (answers.StoreRemoval, "store gc --json"),
    "runs-list": (answers.RunList, "runs list --json"),
    "runs-prune": (answers.RunRemoval, "runs prune --json"),
    "toolchain-list": (answers.ToolchainList, "toolchain list --json"),
}
"""Each document by its name in docs/schema, and where it is met."""


class _Generator(DescribingGenerator):
    """No defaults, which are for readers of older documents alone."""

    def default_schema(self, schema: WithDefaultSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])


def run(arguments: argparse.Namespace) -> int:
    """Print a schema, write one or all of them into a folder, or say which there are."""
    wanted = arguments.what
    files = schema_names(BACKENDS)
    if wanted is not None and wanted not in DOCUMENTS and wanted not in files:
        problem = f"unknown schema {wanted!r}"
        raise ConfigError(Problem(problem, "command line", suggest(wanted, [*DOCUMENTS, *files])))
    if arguments.write is not None:
        folder = user_path(arguments.write, "--write")
        if wanted:
            texts = {wanted: schema_text(wanted)}
        elif arguments.files:
            texts = file_schema_texts(folder)
        else:
            texts = {name: schema_text(name) for name in DOCUMENTS}
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            write_atomically(folder / f"{name}.json", text)
    elif wanted:
        print(schema_text(wanted), end="")
    else:
        documents = {} if arguments.files else {name: of for name, (_, of) in DOCUMENTS.items()}
        rows = list({**documents, **files}.items())
        print(tabulate(rows, headers=("schema", "of"), disable_numparse=True))
    return EXIT_OK


def file_schema_texts(folder: Path, catalogue: Catalogue | None = None) -> dict[str, str]:
    """Return the JSON Schemas of the files that people write, by name, as they are to lie in a
    folder: those that phibuild ships know what it ships, all others what there is."""
    shipped = folder.resolve() == shipped_schemas()
    catalogue = catalogue or Catalogue(shipped_alone=shipped)
    names = SHIPPED if shipped else usable_backends()
    return {name: schema_json(file_schema(name, catalogue, names)) for name in schema_names(names)}


def schema_text(name: str) -> str:
    """Return the JSON Schema of a document of DOCUMENTS, or of a file that people write."""
    if name not in DOCUMENTS:
        return schema_json(file_schema(name, Catalogue(), usable_backends()))
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
    return schema_json(full)
