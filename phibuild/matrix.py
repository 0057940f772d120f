"""Composed recipes to cells: devices x backends x precisions x models, with every skip's reason."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pydantic import BaseModel, ValidationError

from phibuild.backends.registry import BACKENDS, backend
from phibuild.catalogue import Catalogue, explain, locate
from phibuild.checkpoint import Checkpoint
from phibuild.compose import Composition
from phibuild.errors import ConfigError, PhibuildError, Problem, SourceError, suggest
from phibuild.models import model_name, resolve_model
from phibuild.overrides import COMMAND_LINE
from phibuild.recipe import Recipe
from phibuild.schema import PRECISIONS, Cell, Device, Options, Precision, Skip, Variant
from phibuild.yamlfile import Path_, YamlFile


@dataclass(frozen=True)
class Matrix:
    """All cells of a run, and what they refer to by name."""

    cells: tuple[Cell, ...]
    models: Mapping[str, Checkpoint]
    devices: Mapping[str, Device]


@dataclass(frozen=True)
class _Square:
    """What a recipe asks for at one place: where it was written, and all options that hold there
    (None if they are wrong, which is noted)."""

    device: str
    backend: str
    precision: Precision
    options: BaseModel | None
    path: tuple[str, ...]


@dataclass
class _Expansion:
    """One pass over the recipes; problems are collected, so that all are shown at once."""

    composition: Composition
    catalogue: Catalogue
    problems: list[Problem] = field(default_factory=list)
    devices: dict[str, Device] = field(default_factory=dict)
    variants: dict[tuple[str, ...], Variant | Skip] = field(default_factory=dict)

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
            device = self.catalogue.device(name)
        except PhibuildError as error:
            self.problems += [p for p in error.problems if p not in self.problems]
            return None
        self.devices[name] = device
        file = [self.catalogue.device_files[name]]
        for backend_name, precisions in device.backends.items():
            if backend_name not in BACKENDS:
                self.note(f"unknown backend {backend_name!r}",
                          locate(file, ("backends", backend_name)),
                          suggest(backend_name, BACKENDS))  # fmt: skip
                continue
            for precision in precisions:
                _options(backend_name, precision, self, device=device)
        return device

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
    state = _Expansion(composition, catalogue, list(composition.problems))
    squares = [(recipe, list(_squares(recipe, state))) for recipe in composition.recipes]
    if not composition.problems:
        _check_axes(state)
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
    if not cells:
        words = " ".join(composition.axis_words.values())
        raise ConfigError(
            Problem(
                "the recipe has no cell with all of these", f"{COMMAND_LINE}: {words}",
                "'phibuild plan' without them shows what it has",
            )
        )  # fmt: skip
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
    if not reference and state.composition.problems:
        return
    name = model_name(reference)
    word = state.composition.axis_words.get("model")
    where = f"{COMMAND_LINE}: {word}" if word else recipe.where(("model",))
    if name in models:
        if models[name].reference != reference:
            state.note(
                f"models {models[name].reference!r} and {reference!r} would both be "
                f"called {name!r}",
                where,
                "rename one of the folders",
            )
        return
    try:
        models[name] = resolve_model(reference, state.catalogue, where=where, fetch=fetch)
    except PhibuildError as error:
        problems += [problem for problem in error.problems if problem not in problems]


def _squares(recipe: Recipe, state: _Expansion) -> Iterator[_Square]:
    """Yield what the recipe names, restricted to the axes; note what it names wrongly."""
    axes = state.composition.axes
    _check_recipe_options(recipe, state)
    for device_name, backends in recipe.config.devices.items():
        device = state.device(device_name, recipe)
        if device is None:
            continue
        if not backends:
            state.note(f"device {device_name!r} names no backend",
                       recipe.where(("devices", device_name)),
                       f"known: {', '.join(BACKENDS)}")  # fmt: skip
        for name, precisions in backends.items():
            path = ("devices", device_name, name)
            if name not in BACKENDS:
                state.note(f"unknown backend {name!r}", recipe.where(path), suggest(name, BACKENDS))
                continue
            for precision, own in _precisions(precisions, path, recipe, state):
                here = (*path, precision)
                options = _options(name, precision, state, device, recipe, here, own)
                if all(
                    value in axes.get(axis, (value,))
                    for axis, value in (
                        ("device", device_name), ("backend", name), ("precision", precision),
                    )
                ):  # fmt: skip
                    yield _Square(device_name, name, precision, options, here)


def _check_recipe_options(recipe: Recipe, state: _Expansion) -> None:
    for name, precisions in recipe.config.backends.items():
        path = ("backends", name)
        if name not in BACKENDS:
            state.note(f"unknown backend {name!r}", recipe.where(path), suggest(name, BACKENDS))
            continue
        for precision, _ in _precisions(precisions, path, recipe, state):
            _options(name, precision, state, recipe=recipe)


def _precisions(
    value: Any, path: tuple[str, ...], recipe: Recipe, state: _Expansion
) -> Iterator[tuple[Precision, Options]]:
    where = recipe.where(path)
    if isinstance(value, list) and value:
        items: dict[str, Any] = {str(name): {} for name in value}
    elif isinstance(value, Mapping) and value:
        items = {str(name): {} if options is None else options for name, options in value.items()}
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


def _options(
    name: str,
    precision: Precision,
    state: _Expansion,
    device: Device | None = None,
    recipe: Recipe | None = None,
    path: tuple[str, ...] = (),
    own: Options | None = None,
) -> BaseModel | None:
    """Merge the options of a backend: its defaults, the device's, the recipe's, those of the cell
    at `path`. None if they are wrong, which is noted where each wrong one was written."""
    layers = [(state.defaults[name].get(precision, {}), _in(state.catalogue.backend_files.get(name),
                                                            (precision,)))]  # fmt: skip
    if device is not None:
        file = state.catalogue.device_files.get(device.name)
        layers.append(((device.backends.get(name) or {}).get(precision, {}),
                       _in(file, ("backends", name, precision))))  # fmt: skip
    if recipe is not None:
        wide: Any = recipe.config.backends.get(name, {}).get(precision)
        if isinstance(wide, Mapping):
            layers.append((dict(wide), _within(recipe, ("backends", name, precision))))
        layers.append((own or {}, _within(recipe, path)))
    merged: dict[str, Any] = {}
    for options, _ in layers:
        merged.update(options)
    spec = backend(name)
    try:
        return spec.options.model_validate(merged)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            option = str(detail["loc"][0]) if detail["loc"] else ""
            wrote = [where for options, where in layers if option in options] or [layers[-1][1]]
            where = wrote[-1](option)
            if detail["type"] == "extra_forbidden":
                state.note(f"unknown option {option!r} of {name}", where,
                           suggest(option, spec.options.model_fields) or "it has none")  # fmt: skip
            else:
                reason, remedy = explain(detail)
                state.note(f"option {option!r} of {name}: {reason}", where, remedy)
        return None


def _in(file: YamlFile | None, path: Path_) -> Callable[[str], str | None]:
    """Return (option) -> where a file has it, below `path`."""
    return lambda option: locate([file], (*path, option)) if file else None


def _within(recipe: Recipe, path: Path_) -> Callable[[str], str | None]:
    return lambda option: recipe.where((*path, option))


def _check_axes(state: _Expansion) -> None:
    """Refuse a selected name that no recipe of the run has."""
    recipes = state.composition.recipes
    names = " and ".join(recipe.name for recipe in recipes)
    for axis in ("device", "backend", "precision"):
        chosen = state.composition.axes.get(axis)
        if chosen is None:
            continue
        named: dict[str, None] = {}
        for recipe in recipes:
            for device, backends in recipe.config.devices.items():
                for name, precisions in backends.items():
                    for precision in precisions if isinstance(precisions, (list, dict)) else ():
                        square = {"device": device, "backend": name, "precision": str(precision)}
                        named[square[axis]] = None
        where = f"{COMMAND_LINE}: {state.composition.axis_words.get(axis, axis)}"
        has = f"it has: {', '.join(named)}"
        if axis in state.composition.globs:
            if not any(value in named for value in chosen):
                state.note(f"no {axis} of recipe {names} matches", where, has)
            continue
        for value in chosen:
            if value not in named:
                near = suggest(value, named)
                state.note(
                    f"recipe {names} has no {axis} {value!r}",
                    where,
                    f"{near} {has}" if near.startswith("did") else has,
                )


def _add_cell(
    square: _Square,
    recipe: Recipe,
    checkpoint: Checkpoint,
    cells: dict[str, Cell],
    state: _Expansion,
) -> None:
    device = state.devices[square.device]
    found = _variant(square, device, checkpoint, state)
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
    square: _Square, device: Device, checkpoint: Checkpoint, state: _Expansion
) -> Variant | Skip | None:
    """Ask the backend what to build; None if the options are wrong."""
    if square.options is None:
        return None
    options = square.options.model_dump_json()
    key = (checkpoint.name, device.name, square.backend, square.precision, options)
    if key not in state.variants:
        state.variants[key] = backend(square.backend).variant(
            square.precision, square.options, device, checkpoint.architecture
        )
    return state.variants[key]


def _choose(cells: tuple[Cell, ...], only: Sequence[str], skip: Sequence[str]) -> tuple[Cell, ...]:
    for flag, patterns in (("--only", only), ("--skip", skip)):
        for pattern in patterns:
            if not any(fnmatch.fnmatchcase(cell.id, pattern) for cell in cells):
                raise ConfigError(
                    Problem(
                        f"no cell matches {pattern!r}",
                        f"{COMMAND_LINE}: {flag} {pattern}",
                        f"ids look like {cells[0].id}; 'phibuild plan' lists them",
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
