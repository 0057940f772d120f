"""The options that hold at each place of a recipe, or what is wrong with them.

They are merged from the backend's defaults, the device's, the recipe's and the cell's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from pydantic import BaseModel, ValidationError

from phibuild.backends.quality import contradiction, decided
from phibuild.backends.registry import BACKENDS, SHIPPED, backend
from phibuild.config.catalogue import Catalogue
from phibuild.config.compose import Composition
from phibuild.config.recipe import Recipe
from phibuild.config.validation import explain, locate
from phibuild.config.yamlfile import KeyPath, YamlFile
from phibuild.errors import BackendError, PhibuildError, Problem, suggest
from phibuild.schema import Device, Options, Precision, Variant
from phibuild.worker.json_values import object_or_empty

Layer = tuple[Options, Callable[[str], str | None]]
"""Options that were written in one place, and where each of them was."""


@dataclass(frozen=True)
class Answer:
    """What a backend makes of options: a variant, or why there is none (`skip`). What has the same
    `identity` is the same artifact, or the same skip."""

    variant: Variant | None
    skip: str | None
    identity: str


@dataclass
class Expansion:
    """One pass over the recipes; problems are collected, so that all are shown at once."""

    composition: Composition
    catalogue: Catalogue
    problems: list[Problem] = field(default_factory=list)
    devices: dict[str, Device] = field(default_factory=dict)
    answers: dict[tuple[str, ...], Answer | None] = field(default_factory=dict)
    """What backends said; None where options do not suit the model."""

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
        if name not in self.catalogue.device_files:
            self.note(f"unknown device {name!r}", recipe.where(("devices", name)),
                      suggest(name, self.catalogue.device_files))  # fmt: skip
            return None
        return self.known_device(name)

    def known_device(self, name: str) -> Device | None:
        """Return a device of the catalogue; note what is wrong with its file."""
        if name in self.devices:
            return self.devices[name]
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
                merge_options(backend_name, precision, self, device=device)
        return device

    def note(self, what: str, where: str | None, remedy: str | None = None) -> None:
        problem = Problem(what, where, remedy)
        if problem not in self.problems:
            self.problems.append(problem)


def merge_options(
    name: str,
    precision: Precision,
    state: Expansion,
    device: Device | None = None,
    recipe: Recipe | None = None,
    path: KeyPath = (),
    own: Options | None = None,
) -> tuple[BaseModel | None, Callable[[str], str | None]]:
    """Merge the options of a backend: its defaults, the device's, the recipe's, those of the cell
    at `path`. None if they are wrong, which is noted where each wrong one was written; and where
    that is, by the option's name."""
    return _merge(name, precision, state, device, option_layers(
        name, precision, state, device, recipe, path, own
    ))  # fmt: skip


def option_layers(
    name: str,
    precision: Precision,
    state: Expansion,
    device: Device | None = None,
    recipe: Recipe | None = None,
    path: KeyPath = (),
    own: Options | None = None,
) -> list[Layer]:
    """Return what is merged, what counts last at the end."""
    file = state.catalogue.backend_file(name)
    layers = [(state.defaults(name).get(precision, {}), _in(file, (precision,)))]
    if device is not None:
        file = state.catalogue.device_files.get(device.name)
        layers.append(((device.backends.get(name) or {}).get(precision, {}),
                       _in(file, ("backends", name, precision))))  # fmt: skip
    if recipe is not None:
        wide = recipe_options(recipe, name, precision)
        layers.append((wide, _within(recipe, ("backends", name, precision))))
        layers.append((own or {}, _within(recipe, path)))
    return layers


def _merge(
    name: str,
    precision: Precision,
    state: Expansion,
    device: Device | None,
    layers: Sequence[Layer],
) -> tuple[BaseModel | None, Callable[[str], str | None]]:
    merged: Options = {}
    spec = backend(name)
    for given, _ in layers:
        if given.get("quality"):  # it chooses in place of what lies below
            merged = {key: value for key, value in merged.items() if key not in decided(spec)}
        merged.update(given)

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
    wrong = contradiction(spec, precision, options, device)
    if wrong is None:
        return options, where
    # The one that was written last is said to be wrong: what is below it stood there before.
    last = max(wrong.options, key=depth)
    state.note(f"option {last!r} of {name}: {wrong.reason}", where(last), wrong.remedy)
    return None, where


def recipe_options(recipe: Recipe, name: str, precision: Precision) -> Options:
    """Return the options that a recipe has for a backend wherever it is."""
    return dict(object_or_empty(recipe.config.backends.get(name, {}).get(precision)))


def _in(file: YamlFile | None, path: KeyPath) -> Callable[[str], str | None]:
    """Return (option) -> where a file has it, below `path`."""
    return lambda option: locate([file], (*path, option)) if file else None


def _within(recipe: Recipe, path: KeyPath) -> Callable[[str], str | None]:
    return lambda option: recipe.where((*path, option))
