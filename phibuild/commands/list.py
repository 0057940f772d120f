"""`phibuild list`: what can be named in recipes and overrides."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tabulate import tabulate

from phibuild.backends.registry import BACKENDS, backend
from phibuild.commands.common import make_catalogue
from phibuild.config.catalogue import Catalogue
from phibuild.errors import EXIT_OK, ConfigError
from phibuild.schema import PRECISIONS
from phibuild.units import format_size

Row = dict[str, Any]
"""What is known of one thing: sizes in bytes, lists, mappings of options, None for nothing."""
_BYTES = ("memory", "budget")
_TOO_WIDE = ("config",)


def run(arguments: argparse.Namespace) -> int:
    """Print one kind of thing, with what one needs to choose."""
    rows = list(_ROWS[arguments.what](make_catalogue(arguments)))
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return EXIT_OK
    hidden = {key for row in rows for key in row if all(other[key] is None for other in rows)}
    hidden |= {key for row in rows for key in row if key in _TOO_WIDE}
    table = [
        {key: _cell(key, value) for key, value in row.items() if key not in hidden} for row in rows
    ]
    print(tabulate(table, headers="keys", disable_numparse=True))
    return EXIT_OK


def _cell(key: str, value: object) -> str:
    """Return a value as people read it."""
    if value is None:
        return "-"
    if key in _BYTES and isinstance(value, int):
        return format_size(value)
    if isinstance(value, Mapping):
        chosen = [f"{name}: {option}" for name, option in value.items() if option]
        return ", ".join(chosen) or "default"
    return ", ".join(value) if isinstance(value, list) else str(value)


def _recipes(catalogue: Catalogue) -> Iterator[Row]:
    for name, file in sorted(catalogue.recipe_files.items()):
        data: object = None
        try:
            wrong = [str(problem) for problem in file.check()]
            data = file.data() if not wrong else None
        except ConfigError as error:
            wrong = [str(problem) for problem in error.problems]
        text = data.get("description") if isinstance(data, dict) else None
        problem = wrong[0].splitlines()[0] if wrong else None
        yield {"recipe": name, "description": text, "file": file.shown, "problem": problem}


def _devices(catalogue: Catalogue) -> Iterator[Row]:
    for name in sorted(catalogue.device_files):
        device = catalogue.device(name)
        yield {
            "device": name,
            "class": device.device_class,
            "memory": device.memory,
            "budget": device.budget,
            "context": device.context_length,
            "accelerators": list(device.accelerators),
            "title": device.title,
        }


def _models(catalogue: Catalogue) -> Iterator[Row]:
    for name in sorted(catalogue.model_files):
        model = catalogue.model(name)
        yield {
            "model": name,
            "title": model.title,
            "repo": model.repo,
            "revision": model.revision,
            "licence": model.license,
            "config": model.config or None,
        }


def _backends(catalogue: Catalogue) -> Iterator[Row]:
    for name in BACKENDS:
        spec = backend(name)
        options = list(spec.options.model_fields)
        yield {"backend": name, "format": spec.format, "for": spec.title, "options": options}


def _precisions(catalogue: Catalogue) -> Iterator[Row]:
    defaults = {name: catalogue.backend_defaults(name) for name in BACKENDS}
    for precision in PRECISIONS:
        row: Row = {"precision": precision}
        for name in BACKENDS:
            row[name] = defaults[name].get(precision)
        yield row


_ROWS: dict[str, Callable[[Catalogue], Iterator[Row]]] = {
    "recipes": _recipes,
    "devices": _devices,
    "models": _models,
    "backends": _backends,
    "precisions": _precisions,
}
