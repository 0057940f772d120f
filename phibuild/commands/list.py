"""`phibuild list`: what can be named in recipes and overrides."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Mapping
from itertools import product

from tabulate import tabulate

from phibuild.backends.registry import BACKENDS, backend
from phibuild.commands.answers import (
    BackendList,
    BackendRow,
    DeviceList,
    DeviceRow,
    ModelList,
    ModelRow,
    PrecisionList,
    PrecisionRow,
    RecipeList,
    RecipeRow,
)
from phibuild.commands.common import make_catalogue
from phibuild.config.catalogue import Catalogue
from phibuild.config.yamlfile import YamlFile
from phibuild.errors import EXIT_OK, BackendError, ConfigError
from phibuild.schema import PRECISIONS, document_text
from phibuild.units import written

_BYTES = ("memory", "budget")
_TOO_WIDE = ("config",)


def run(arguments: argparse.Namespace) -> int:
    """Print one kind of thing, with what one needs to choose."""
    found = _LISTS[arguments.what](make_catalogue(arguments))
    if arguments.json:
        print(document_text(found))
        return EXIT_OK
    rows: list[dict[str, object]] = found.model_dump(by_alias=True)
    for row, key in product(rows, _BYTES):
        if key in row:
            row[key] = row.pop(f"{key}_written")
    hidden = {key for row in rows for key in row if all(other[key] is None for other in rows)}
    hidden |= {key for row in rows for key in row if key in _TOO_WIDE}
    table = [{key: _cell(value) for key, value in row.items() if key not in hidden} for row in rows]
    print(tabulate(table, headers="keys", disable_numparse=True))
    return EXIT_OK


def _cell(value: object) -> str:
    """Return a value as people read it."""
    match value:
        case None:
            return "-"
        case Mapping():
            chosen = [f"{name}: {option}" for name, option in value.items() if option]
            return ", ".join(chosen) or "default"
        case list():
            return ", ".join(value)
    return str(value)


def _recipes(catalogue: Catalogue) -> RecipeList:
    return RecipeList(
        [_recipe(name, file) for name, file in sorted(catalogue.recipe_files.items())]
    )


def _recipe(name: str, file: YamlFile) -> RecipeRow:
    text = None
    try:
        wrong = [str(problem) for problem in file.check()]
        text = file.data().get("description") if not wrong else None
    except ConfigError as error:
        wrong = [str(problem) for problem in error.problems]
    return RecipeRow(
        recipe=name,
        description=None if text is None else str(text),
        file=file.shown,
        problem=wrong[0].splitlines()[0] if wrong else None,
    )


def _devices(catalogue: Catalogue) -> DeviceList:
    devices = {name: catalogue.device(name) for name in sorted(catalogue.device_files)}
    return DeviceList(
        [
            DeviceRow(
                device=name,
                device_class=device.device_class,
                memory=device.memory,
                memory_written=written(device.memory),
                budget=device.budget,
                budget_written=written(device.budget),
                context=device.context_length,
                accelerators=list(device.accelerators),
                title=device.title,
            )
            for name, device in devices.items()
        ]
    )


def _models(catalogue: Catalogue) -> ModelList:
    models = {name: catalogue.model(name) for name in sorted(catalogue.model_files)}
    return ModelList(
        [
            ModelRow(
                model=name,
                title=model.title,
                repo=model.repo,
                revision=model.revision,
                licence=model.license,
                config=model.config or None,
            )
            for name, model in models.items()
        ]
    )


def _backends(catalogue: Catalogue) -> BackendList:
    return BackendList([_backend(name) for name in BACKENDS])


def _backend(name: str) -> BackendRow:
    try:
        spec = backend(name)
    except BackendError as error:
        what = error.problems[0].what
        return BackendRow(backend=name, format=None, title=None, options=None, problem=what)
    return BackendRow(
        backend=name,
        format=spec.format,
        title=spec.title,
        options=list(spec.options.model_fields),
        problem=None,
    )


def _precisions(catalogue: Catalogue) -> PrecisionList:
    defaults = {}
    for name in BACKENDS:
        with contextlib.suppress(BackendError):  # 'list backends' says what is wrong with it
            defaults[name] = catalogue.backend_defaults(name)
    return PrecisionList(
        [
            PrecisionRow(
                precision=precision, **{name: own.get(precision) for name, own in defaults.items()}
            )
            for precision in PRECISIONS
        ]
    )


_List = RecipeList | DeviceList | ModelList | BackendList | PrecisionList
_LISTS: dict[str, Callable[[Catalogue], _List]] = {
    "recipes": _recipes,
    "devices": _devices,
    "models": _models,
    "backends": _backends,
    "precisions": _precisions,
}
