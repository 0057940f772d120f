"""What the recipes ask for, variant by variant, with the options that hold at each; or what is
wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel

from phibuild.backends.registry import BACKENDS
from phibuild.config.edits import COMMAND_LINE, is_variants
from phibuild.config.recipe import Recipe
from phibuild.config.yamlfile import KeyPath
from phibuild.errors import suggest
from phibuild.planning.options import Expansion, merge_options, recipe_options
from phibuild.schema import ONE_VARIANT, PRECISIONS, Options, Precision

_EXAMPLE = "for example int4: [{type: Q4_0}, {type: Q4_K_M}]"


@dataclass(frozen=True)
class CellRequest:
    """A variant that a recipe asks for: where it was written, what the recipe itself gives (`own`
    there, `wide` for all of the backend), and all options that hold (None if they are wrong, which
    is noted)."""

    recipe: Recipe
    device: str
    backend: str
    precision: Precision
    options: BaseModel | None
    own: Options
    wide: Options
    path: KeyPath
    where: Callable[[str], str | None]
    """Option -> where what holds was written."""

    @property
    def place(self) -> tuple[str, str, Precision]:
        return self.device, self.backend, self.precision


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
            for precision, own, here in _variants(precisions, path, recipe, state):
                options, where = merge_options(name, precision, state, device, recipe, here, own)
                if device is not None and all(
                    value in axes.get(axis, (value,))
                    for axis, value in (
                        ("device", device_name), ("backend", name), ("precision", precision),
                    )
                ):  # fmt: skip
                    wide = recipe_options(recipe, name, precision)
                    yield CellRequest(
                        recipe, device_name, name, precision, options, own, wide, here, where
                    )


def _check_recipe_options(recipe: Recipe, state: Expansion) -> None:
    for name, precisions in recipe.config.backends.items():
        path = ("backends", name)
        if not state.knows(name, recipe.where(path)):
            continue
        for precision, _, _ in _variants(precisions, path, recipe, state):
            merge_options(name, precision, state, recipe=recipe)


def _variants(
    value: object, path: KeyPath, recipe: Recipe, state: Expansion
) -> Iterator[tuple[Precision, Options, KeyPath]]:
    """Yield the options of each variant, with the path where they stand."""
    match value:
        case [_, *_]:
            items: dict[str, object] = {str(name): {} for name in value}
        case Mapping() if value:
            items = {str(name): own for name, own in value.items()}
        case _:
            state.note(
                f"{path[-1]}: needs a list of precisions, or a mapping of precisions to options",
                recipe.where(path),
                f"for example {path[-1]}: [int4, int8]",
            )
            return
    for word, options in items.items():
        here = (*path, word)
        precision = next((known for known in PRECISIONS if known == word), None)
        if precision is None:
            state.note(f"unknown precision {word!r}", recipe.where(here), suggest(word, PRECISIONS))
            continue
        variants: dict[KeyPath, object] = {here: options}
        match options:
            case list() if not is_variants(here):
                what = f"options of {word} must be a mapping, not a list"
                state.note(what, recipe.where(here), ONE_VARIANT)
                continue
            case []:
                state.note(f"{word}: needs one variant at least", recipe.where(here), _EXAMPLE)
                continue
            case list():
                variants = {(*here, number): own for number, own in enumerate(options)}
        for entry, own in variants.items():
            match own:
                case None:
                    yield precision, {}, entry
                case Mapping():
                    yield precision, dict(own), entry
                case _:
                    one, remedy = ("options", None) if entry == here else ("a variant", _EXAMPLE)
                    what = f"{one} of {word} must be a mapping, not {own!r}"
                    state.note(what, recipe.where(entry), remedy)


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


def check_sweeps(state: Expansion, requests: Sequence[Sequence[Sequence[CellRequest]]]) -> None:
    """Refuse a sweep over options that changes those of no cell; `requests` are those of each
    recipe and each combination of what is swept."""
    outcomes = [[_outcome(one) for one in combinations] for combinations in requests]
    stride = math.prod(len(sweep.values) for sweep in state.composition.sweeps)
    for sweep in state.composition.sweeps:
        count = len(sweep.values)
        stride //= count
        # Combinations that differ by the next value of this sweep alone lie `stride` apart.
        if count > 1 and not any(
            found[number] != found[number + stride]
            for found in outcomes
            for number in range(len(found) - stride)
            if number // stride % count < count - 1
        ):
            top, *below = sweep.key.split(".")
            place = below[: 2 if top == "backends" else 3]
            there = [".".join(one.place[-len(place) :]) for one in requests[0][0]]
            name, remedy = ".".join(place), "devices.DEVICE.BACKEND.PRECISION.OPTION has it"
            why = "its cells' own options have the last word, or its values come to the same"
            if name not in there:
                why = f"no cell is {name}"
                remedy = f"there are {', '.join(dict.fromkeys(there))}"
            state.note(f"sweeping {sweep.key} makes no difference: {why}", sweep.where, remedy)


def _outcome(requests: Iterable[CellRequest]) -> list[tuple[KeyPath, str]]:
    return [(one.path, one.options.model_dump_json() if one.options else "") for one in requests]
