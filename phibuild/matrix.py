"""Composed recipes to cells: devices x backends x precisions x models, with every skip's reason."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pydantic import BaseModel, ValidationError

from phibuild.architecture import Architecture
from phibuild.backends.base import BackendSpec
from phibuild.backends.registry import BACKENDS, backend
from phibuild.catalogue import Catalogue, locate
from phibuild.checkpoint import Checkpoint
from phibuild.compose import COMMAND_LINE, Composition, Recipe
from phibuild.errors import ConfigError, PhibuildError, Problem, SourceError, suggest
from phibuild.models import model_name, resolve_model
from phibuild.schema import PRECISIONS, Cell, Device, Options, Precision, Skip, Variant


@dataclass(frozen=True)
class Matrix:
    """All cells of a run, and what they refer to by name."""

    cells: tuple[Cell, ...]
    models: Mapping[str, Checkpoint]
    devices: Mapping[str, Device]


@dataclass(frozen=True)
class _Square:
    """What a recipe asks for at one place: where it was written, and the options given there."""

    device: str
    backend: str
    precision: Precision
    options: Options
    path: tuple[str, ...]


@dataclass
class _Expansion:
    """One pass over the recipes; problems are collected, so that all are shown at once."""

    composition: Composition
    catalogue: Catalogue
    problems: list[Problem] = field(default_factory=list)
    devices: dict[str, Device] = field(default_factory=dict)
    variants: dict[tuple[str, ...], Variant | Skip | None] = field(default_factory=dict)

    @cached_property
    def defaults(self) -> dict[str, dict[str, Options]]:
        return {name: self.catalogue.backend_defaults(name) for name in BACKENDS}

    def device(self, name: str, recipe: Recipe) -> Device | None:
        if name in self.devices:
            return self.devices[name]
        if name not in self.catalogue.device_files:
            self.note(f"unknown device {name!r}", recipe.where(("devices", name)),
                      suggest(name, self.catalogue.device_files))  # fmt: skip
            return None
        try:
            self.devices[name] = self.catalogue.device(name)
        except PhibuildError as error:
            self.problems += [p for p in error.problems if p not in self.problems]
            return None
        return self.devices[name]

    def note(self, what: str, where: str | None, remedy: str | None = None) -> None:
        problem = Problem(what, where, remedy)
        if problem not in self.problems:
            self.problems.append(problem)


def expand(
    composition: Composition,
    catalogue: Catalogue,
    *,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    fetch: bool = False,
) -> Matrix:
    """Return the matrix. `only` and `skip` are globs on cell ids; `fetch` downloads Hub models.

    Raises ConfigError or SourceError with all that is wrong.
    """
    state = _Expansion(composition, catalogue)
    squares = [(recipe, list(_squares(recipe, state))) for recipe in composition.recipes]
    _check_axes(squares, state)
    models: dict[str, Checkpoint] = {}
    source_problems: list[Problem] = []
    for recipe in composition.recipes:
        for reference in composition.axes.get("model", (recipe.config.model,)):
            _add_model(reference, recipe, models, state, source_problems, fetch=fetch)
    cells: dict[str, Cell] = {}
    for recipe, wanted in squares:
        for reference in composition.axes.get("model", (recipe.config.model,)):
            checkpoint = models.get(model_name(reference))
            if checkpoint:
                for square in wanted:
                    _add_cell(square, recipe, checkpoint, cells, state)
    if state.problems:
        raise ConfigError([*state.problems, *source_problems])
    if source_problems:
        raise SourceError(source_problems)
    chosen = _choose(tuple(cells.values()), only, skip)
    used = {cell.model for cell in chosen}
    return Matrix(
        chosen, {name: model for name, model in models.items() if name in used}, state.devices
    )


def _add_model(
    reference: str,
    recipe: Recipe,
    models: dict[str, Checkpoint],
    state: _Expansion,
    problems: list[Problem],
    *,
    fetch: bool,
) -> None:
    name = model_name(reference)
    if name in models:
        if models[name].reference != reference:
            state.note(
                f"models {models[name].reference!r} and {reference!r} would both be "
                f"called {name!r}",
                recipe.where(("model",)),
                "rename one of the folders",
            )
        return
    word = state.composition.axis_words.get("model")
    where = f"{COMMAND_LINE}: {word}" if word else recipe.where(("model",))
    try:
        models[name] = resolve_model(reference, state.catalogue, where=where, fetch=fetch)
    except SourceError as error:
        problems += [problem for problem in error.problems if problem not in problems]


def _squares(recipe: Recipe, state: _Expansion) -> Iterator[_Square]:
    """Yield what the recipe names, restricted to the axes; note what it names wrongly."""
    axes = state.composition.axes
    for name, options in _recipe_options(recipe, state):
        del name, options  # checked for problems alone; merged per square below
    for device, backends in recipe.config.devices.items():
        if state.device(device, recipe) is None:
            continue
        if not backends:
            state.note("names no backend", recipe.where(("devices", device)),
                       f"known: {', '.join(BACKENDS)}")  # fmt: skip
        for name, precisions in backends.items():
            path = ("devices", device, name)
            if name not in BACKENDS:
                state.note(f"unknown backend {name!r}", recipe.where(path), suggest(name, BACKENDS))
                continue
            for precision, options in _precisions(precisions, path, recipe, state):
                if all(
                    value in axes.get(axis, (value,))
                    for axis, value in (
                        ("device", device), ("backend", name), ("precision", precision),
                    )
                ):  # fmt: skip
                    yield _Square(device, name, precision, options, (*path, precision))


def _recipe_options(recipe: Recipe, state: _Expansion) -> Iterator[tuple[str, Options]]:
    for name, precisions in recipe.config.backends.items():
        path = ("backends", name)
        if name not in BACKENDS:
            state.note(f"unknown backend {name!r}", recipe.where(path), suggest(name, BACKENDS))
            continue
        for precision, options in _precisions(precisions, path, recipe, state):
            try:
                backend(name).options.model_validate(
                    {**state.defaults[name].get(precision, {}), **options}
                )
            except ValidationError as error:
                _note_options(error, backend(name), recipe, (*path, precision), state)
            yield name, options


def _precisions(
    value: Any, path: tuple[str, ...], recipe: Recipe, state: _Expansion
) -> Iterator[tuple[Precision, Options]]:
    where = recipe.where(path)
    if isinstance(value, list) and value:
        items: dict[str, Any] = {str(name): {} for name in value}
    elif isinstance(value, Mapping) and value:
        items = {str(name): options or {} for name, options in value.items()}
    else:
        state.note(
            f"{path[-1]}: needs a list of precisions, or a mapping of precisions to options",
            where,
            f"for example {path[-1]}: [int4, int8]",
        )
        return
    for word, options in items.items():
        here = recipe.where((*path, word))
        precision = next((known for known in PRECISIONS if known == word), None)
        if precision is None:
            state.note(f"unknown precision {word!r}", here, suggest(word, PRECISIONS))
        elif not isinstance(options, Mapping):
            state.note(f"options of {word} must be a mapping, not {options!r}", here)
        else:
            yield precision, dict(options)


def _check_axes(squares: list[tuple[Recipe, list[_Square]]], state: _Expansion) -> None:
    """Refuse a selected name that no recipe of the run has."""
    for axis in ("device", "backend", "precision"):
        chosen = state.composition.axes.get(axis)
        if chosen is None:
            continue
        named: dict[str, None] = {}
        for recipe, _ in squares:
            for device, backends in recipe.config.devices.items():
                for name, precisions in (backends or {}).items():
                    for precision in precisions or ():
                        square = {"device": device, "backend": name, "precision": str(precision)}
                        named[square[axis]] = None
        word = state.composition.axis_words.get(axis, axis)
        for value in chosen:
            if value not in named:
                names = " and ".join(recipe.name for recipe, _ in squares)
                near = suggest(value, named)
                has = f"it has: {', '.join(named)}"
                state.note(
                    f"recipe {names} has no {axis} {value!r}",
                    f"{COMMAND_LINE}: {word}",
                    f"{near}; {has}" if near.startswith("did") else has,
                )


def _add_cell(
    square: _Square,
    recipe: Recipe,
    checkpoint: Checkpoint,
    cells: dict[str, Cell],
    state: _Expansion,
) -> None:
    device = state.devices[square.device]
    found = _variant(square, recipe, device, checkpoint.architecture, checkpoint.name, state)
    if found is None:
        return
    cell = Cell(
        id=f"{checkpoint.name}.{square.device}.{square.backend}.{square.precision}",
        model=checkpoint.name,
        device=square.device,
        backend=square.backend,
        precision=square.precision,
        variant=found if isinstance(found, Variant) else None,
        skip=found.reason if isinstance(found, Skip) else None,
        gates=recipe.config.gates,
    )
    known = cells.get(cell.id)
    if known and known.variant != cell.variant:
        state.note(
            f"two recipes of this run build {cell.id} differently",
            recipe.where(square.path),
            "build them one after the other",
        )
    elif known is None:
        cells[cell.id] = cell


def _variant(
    square: _Square,
    recipe: Recipe,
    device: Device,
    architecture: Architecture,
    model: str,
    state: _Expansion,
) -> Variant | Skip | None:
    """Merge the options (backend's defaults, the device's, the recipe's, the cell's) and ask the
    backend; None if they are wrong, which is noted."""
    precision = square.precision
    recipe_wide = (recipe.config.backends.get(square.backend) or {}).get(precision) or {}
    merged = {
        **state.defaults[square.backend].get(precision, {}),
        **(device.backends.get(square.backend) or {}).get(precision, {}),
        **recipe_wide,
        **square.options,
    }
    key = (
        model,
        device.name,
        square.backend,
        precision,
        json.dumps(merged, sort_keys=True, default=str),
    )
    if key not in state.variants:
        spec = backend(square.backend)
        state.variants[key] = None
        try:
            options: BaseModel = spec.options.model_validate(merged)
        except ValidationError as error:
            _note_options(error, spec, recipe, square.path, state, device)
        else:
            state.variants[key] = spec.variant(precision, options, device, architecture)
    return state.variants[key]


def _note_options(
    error: ValidationError,
    spec: BackendSpec,
    recipe: Recipe,
    path: tuple[str, ...],
    state: _Expansion,
    device: Device | None = None,
) -> None:
    known = list(spec.options.model_fields)
    for detail in error.errors(include_url=False, include_context=False):
        option = str(detail["loc"][0]) if detail["loc"] else ""
        where = recipe.where((*path, option))
        own = dict((device.backends if device else {}).get(path[2]) or {})
        if device is not None and any(option in own[name] for name in own if name == path[3]):
            files = [state.catalogue.device_files[device.name]]
            where = locate(files, ("backends", path[2], path[3], option)) or where
        if detail["type"] == "extra_forbidden":
            state.note(f"unknown option {option!r} of {spec.name}", where, suggest(option, known))
        else:
            message = detail["msg"].removeprefix("Value error, ")
            state.note(
                f"option {option!r} of {spec.name}: {message[:1].lower()}{message[1:]}"
                f", not {detail['input']!r}",
                where,
            )


def _choose(cells: tuple[Cell, ...], only: Sequence[str], skip: Sequence[str]) -> tuple[Cell, ...]:
    for flag, patterns in (("--only", only), ("--skip", skip)):
        for pattern in patterns:
            if not any(fnmatch.fnmatchcase(cell.id, pattern) for cell in cells):
                raise ConfigError(
                    Problem(
                        f"no cell matches {pattern!r}",
                        f"{COMMAND_LINE}: {flag} {pattern}",
                        f"ids look like {cells[0].id}; 'phibuild plan' lists them"
                        if cells
                        else None,
                    )
                )
    chosen = tuple(
        cell
        for cell in cells
        if (not only or any(fnmatch.fnmatchcase(cell.id, glob) for glob in only))
        and not any(fnmatch.fnmatchcase(cell.id, glob) for glob in skip)
    )
    if not chosen:
        raise ConfigError(
            Problem("nothing is left to build", COMMAND_LINE, "loosen --only or --skip")
        )
    return chosen
