"""What the recipes ask for, cell by cell, with the options that hold at each; or what is wrong.

Options are merged from the backend's defaults, the device's, the recipe's and the cell's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from pydantic import BaseModel, ValidationError

from phibuild.backends.registry import BACKENDS, SHIPPED, backend
from phibuild.config.catalogue import Catalogue, explain, locate
from phibuild.config.compose import Composition
from phibuild.config.edits import COMMAND_LINE
from phibuild.config.recipe import Recipe
from phibuild.config.yamlfile import KeyPath, YamlFile
from phibuild.errors import BackendError, PhibuildError, Problem, suggest
from phibuild.schema import PRECISIONS, Device, Options, Precision, Skip, Variant
from phibuild.worker.json_values import object_or_empty


@dataclass(frozen=True)
class CellRequest:
    """What a recipe asks for at one place: where it was written, and all options that hold there
    (None if they are wrong, which is noted)."""

    device: str
    backend: str
    precision: Precision
    options: BaseModel | None
    path: tuple[str, ...]
    where: Callable[[str], str | None]
    """Option -> where what holds was written."""


@dataclass
class Expansion:
    """One pass over the recipes; problems are collected, so that all are shown at once."""

    composition: Composition
    catalogue: Catalogue
    problems: list[Problem] = field(default_factory=list)
    devices: dict[str, Device] = field(default_factory=dict)
    variants: dict[tuple[str, ...], Variant | Skip] = field(default_factory=dict)

    @cached_property
    def _defaults(self) -> dict[str, dict[str, Options]]:
        return {name: self.catalogue.backend_defaults(name) for name in SHIPPED}

    def defaults(self, name: str) -> dict[str, Options]:
        """Return a backend's defaults by precision. Those of phibuild's own are read together, so
        that what is wrong with one is said whoever is asked for; others only when they are."""
        if name not in self._defaults:
            self._defaults[name] = self.catalogue.backend_defaults(name)
        return self._defaults[name]

    def knows(self, name: str, where: str | None) -> bool:
        """Return whether there is a backend `name` that can be used; note it if not."""
        if name not in BACKENDS:
            self.note(f"unknown backend {name!r}", where, suggest(name, BACKENDS))
            return False
        try:
            backend(name)
        except BackendError as error:
            self.problems += [
                problem
                for broken in error.problems
                if (problem := replace(broken, where=f"{where}: {broken.where}"))
                not in self.problems
            ]
            return False
        return True

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
            if not self.knows(backend_name, locate(file, ("backends", backend_name))):
                continue
            for precision in precisions:
                _options(backend_name, precision, self, device=device)
        return device

    def note(self, what: str, where: str | None, remedy: str | None = None) -> None:
        problem = Problem(what, where, remedy)
        if problem not in self.problems:
            self.problems.append(problem)


def read_cell_requests(recipe: Recipe, state: Expansion) -> Iterator[CellRequest]:
    """Yield what the recipe names, restricted to the axes; note what it names wrongly."""
    axes = state.composition.axes
    _check_recipe_options(recipe, state)
    for device_name, backends in recipe.config.devices.items():
        # What is wrong below a device that is wrong itself is said all the same.
        device = state.device(device_name, recipe)
        if not backends:
            state.note(f"device {device_name!r} names no backend",
                       recipe.where(("devices", device_name)),
                       f"known: {', '.join(BACKENDS)}")  # fmt: skip
        for name, precisions in backends.items():
            path = ("devices", device_name, name)
            if not state.knows(name, recipe.where(path)):
                continue
            for precision, own in _precisions(precisions, path, recipe, state):
                here = (*path, precision)
                options, where = _options(name, precision, state, device, recipe, here, own)
                if device is not None and all(
                    value in axes.get(axis, (value,))
                    for axis, value in (
                        ("device", device_name), ("backend", name), ("precision", precision),
                    )
                ):  # fmt: skip
                    yield CellRequest(device_name, name, precision, options, here, where)


def _check_recipe_options(recipe: Recipe, state: Expansion) -> None:
    for name, precisions in recipe.config.backends.items():
        path = ("backends", name)
        if not state.knows(name, recipe.where(path)):
            continue
        for precision, _ in _precisions(precisions, path, recipe, state):
            _options(name, precision, state, recipe=recipe)


def _precisions(
    value: object, path: tuple[str, ...], recipe: Recipe, state: Expansion
) -> Iterator[tuple[Precision, Options]]:
    where = recipe.where(path)
    match value:
        case [_, *_]:
            items: dict[str, object] = {str(name): {} for name in value}
        case Mapping() if value:
            items = {str(name): {} if own is None else own for name, own in value.items()}
        case _:
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
    state: Expansion,
    device: Device | None = None,
    recipe: Recipe | None = None,
    path: tuple[str, ...] = (),
    own: Options | None = None,
) -> tuple[BaseModel | None, Callable[[str], str | None]]:
    """Merge the options of a backend: its defaults, the device's, the recipe's, those of the cell
    at `path`. None if they are wrong, which is noted where each wrong one was written; and where
    that is, by the option's name."""
    file = state.catalogue.backend_file(name)
    layers = [(state.defaults(name).get(precision, {}), _in(file, (precision,)))]
    if device is not None:
        file = state.catalogue.device_files.get(device.name)
        layers.append(((device.backends.get(name) or {}).get(precision, {}),
                       _in(file, ("backends", name, precision))))  # fmt: skip
    if recipe is not None:
        wide = object_or_empty(recipe.config.backends.get(name, {}).get(precision))
        layers.append((dict(wide), _within(recipe, ("backends", name, precision))))
        layers.append((own or {}, _within(recipe, path)))
    merged: Options = {}
    for given, _ in layers:
        merged.update(given)
    spec = backend(name)

    def depth(option: str) -> int:
        """Return the number of the layer that has the last word on an option."""
        found = (number for number, (given, _) in enumerate(layers) if option in given)
        return max(found, default=len(layers) - 1)

    def where(option: str) -> str | None:
        return layers[depth(option)][1](option)

    try:
        options = spec.options.model_validate(merged)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            option = str(detail["loc"][0]) if detail["loc"] else ""
            if detail["type"] == "extra_forbidden":
                state.note(f"unknown option {option!r} of {name}", where(option),
                           suggest(option, spec.options.model_fields) or "it has none")  # fmt: skip
            else:
                reason, remedy = explain(detail)
                state.note(f"option {option!r} of {name}: {reason}", where(option), remedy)
        return None, where
    wrong = spec.contradiction(precision, options)
    if wrong is None:
        return options, where
    # The one that was written last is said to be wrong: what is below it stood there before.
    last = max(wrong.options, key=depth)
    state.note(f"option {last!r} of {name}: {wrong.reason}", where(last), wrong.remedy)
    return None, where


def _in(file: YamlFile | None, path: KeyPath) -> Callable[[str], str | None]:
    """Return (option) -> where a file has it, below `path`."""
    return lambda option: locate([file], (*path, option)) if file else None


def _within(recipe: Recipe, path: KeyPath) -> Callable[[str], str | None]:
    return lambda option: recipe.where((*path, option))


def check_axes(state: Expansion) -> None:
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
                        request = {"device": device, "backend": name, "precision": str(precision)}
                        named[request[axis]] = None
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
