"""Composed recipes to cells: devices x backends x precisions x models, with every skip's reason."""

from __future__ import annotations

import fnmatch
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from phibuild.checkpoints.facts import Checkpoint
from phibuild.checkpoints.resolve import Fetch, model_name, resolve_model
from phibuild.config.catalogue import Catalogue
from phibuild.config.compose import Composition
from phibuild.config.edits import COMMAND_LINE
from phibuild.config.model_choice import ModelChoice
from phibuild.config.recipe import NO_MODEL, Recipe
from phibuild.errors import ConfigError, PhibuildError, Problem, SourceError, suggest
from phibuild.planning.baselines import Baseline
from phibuild.planning.cell_requests import (
    CellRequest,
    check_axes,
    check_sweeps,
    read_cell_requests,
)
from phibuild.planning.cells import make_cells
from phibuild.planning.options import Expansion
from phibuild.schema import Cell, Device, Variant
from phibuild.schema.limits import by_precision


@dataclass(frozen=True)
class Matrix:
    """All cells of a run, and what they refer to by name."""

    cells: tuple[Cell, ...]
    models: Mapping[str, Checkpoint]
    devices: Mapping[str, Device]
    calibrations: Mapping[str, str | None] = field(default_factory=dict)
    """Cell id -> where its calibration text was named."""
    baselines: Mapping[str, Baseline] = field(default_factory=dict)
    """Cell id -> what its gates compare it with."""


def expand(
    composition: Composition,
    catalogue: Catalogue,
    *,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    fetch: Mapping[str, Fetch] | None = None,
    strict: bool = False,
) -> Matrix:
    """Return the matrix. `only` and `skip` are globs on cell ids; `fetch` says by name which Hub
    models are downloaded, and when: others are not; `strict` allows no skip.

    Raises ConfigError or SourceError with all that is wrong, also where every cell is skipped.
    """
    state = Expansion(composition, catalogue, list(composition.problems))
    requests = [
        [list(read_cell_requests(one, state)) for one in recipe.combinations]
        for recipe in composition.recipes
    ]
    if not composition.problems:
        check_axes(state)
    if not state.problems:
        check_sweeps(state, requests)
    models: dict[str, Checkpoint] = {}
    source_problems: list[Problem] = []
    for recipe in composition.recipes:
        for choice in composition.models_of(recipe):
            _add_model(choice, recipe, models, state, source_problems, fetch or {})
    cells: dict[str, Cell] = {}
    places: dict[str, str | None] = {}
    calibrations: dict[str, str | None] = {}
    for recipe, asked in zip(composition.recipes, requests, strict=True):
        found = [
            made
            for choice in composition.models_of(recipe)
            if (checkpoint := models.get(model_name(choice)))
            for made in make_cells(asked, checkpoint, state)
        ]
        check_limits(recipe, [cell for cell, _ in found], state)
        _add_cells(recipe, found, cells, state)
        for cell, request in found:
            if cell.skip:
                places.setdefault(cell.id, request.recipe.where(request.path))
            if cell.variant and cell.variant.texts:
                calibrations.setdefault(cell.id, calibration_place(request))
    if state.problems:
        raise ConfigError(*state.problems, *source_problems)
    if source_problems:
        raise SourceError(*source_problems)
    if not cells:
        words = " ".join(composition.axis_words.values())
        raise ConfigError(
            Problem(
                "the recipe has no cell with all of these", f"{COMMAND_LINE}: {words}",
                "'phibuild plan' without them shows what it has",
            )
        )  # fmt: skip
    chosen = _choose(tuple(cells.values()), only, skip)
    check_skips(chosen, places, strict=strict)
    used = {cell.model for cell in chosen}
    return Matrix(
        chosen,
        {name: model for name, model in models.items() if name in used},
        state.devices,
        {cell.id: calibrations[cell.id] for cell in chosen if cell.id in calibrations},
    )


def _add_model(
    choice: ModelChoice,
    recipe: Recipe,
    models: dict[str, Checkpoint],
    state: Expansion,
    problems: list[Problem],
    fetch: Mapping[str, Fetch],
) -> None:
    if choice == NO_MODEL and state.composition.problems:
        return
    name, reference = model_name(choice), choice.reference
    word = state.composition.axis_words.get("model")

    def where(key: str) -> str | None:
        return f"{COMMAND_LINE}: {word}" if word else recipe.where(("model", key))

    if name in models:
        if models[name].reference != reference:
            state.note(
                f"models {models[name].reference!r} and {reference!r} would both be "
                f"called {name!r}",
                where("name"),
                f"give one a name of its own: {{name: NAME, path: {reference}}}",
            )
        return
    try:
        models[name] = resolve_model(
            choice, state.catalogue, where=where, fetch=fetch.get(name, "never")
        )
    except PhibuildError as error:
        problems += [problem for problem in error.problems if problem not in problems]


def _add_cells(
    recipe: Recipe,
    found: Sequence[tuple[Cell, CellRequest]],
    cells: dict[str, Cell],
    state: Expansion,
) -> None:
    """Add the cells of a recipe and a model. Another recipe of the run may have asked for some of
    their places; then it has to have asked for the same variants there."""
    places: dict[str, dict[str, Cell]] = {}
    for cell in cells.values():
        places.setdefault(cell.place, {})[cell.id] = cell
    own: dict[str, dict[str, Cell]] = {}
    for cell, _ in found:
        own.setdefault(cell.place, {})[cell.id] = cell
    for cell, request in found:
        place = cell.place
        if place in places and _variants(places[place]) != _variants(own[place]):
            state.note(
                f"two recipes of this run build {place} differently",
                recipe.where(request.path[:4]),
                "build them one after the other",
            )
        cells.setdefault(cell.id, cell)


def _variants(cells: Mapping[str, Cell]) -> dict[str, Variant | None]:
    return {name: cell.variant for name, cell in cells.items()}


def check_limits(recipe: Recipe, cells: Sequence[Cell], state: Expansion) -> None:
    """Refuse a limit for a variant that the recipe does not have. Where the command line or a skip
    leaves variants out, nobody knows."""
    composition = state.composition
    changed = any(path[0] in ("devices", "backends") for path in recipe.overrides)
    if changed or composition.sweeps or composition.axes.keys() - {"recipe"}:
        return
    for gate in ("kl", "top1"):
        for key in by_precision(getattr(recipe.config.gates, gate)):
            precision, _, name = key.partition(".")
            some = [cell for cell in cells if cell.precision == precision]
            names = [cell.variant.name for cell in some if cell.variant]
            if name and len(names) == len(some) > 0 and name not in names:
                state.note(
                    f"gates.{gate}: no {precision} variant of the recipe is called {name!r}",
                    recipe.where(("gates", gate, key)),
                    suggest(name, sorted(set(names))),
                )


def calibration_place(request: CellRequest) -> str | None:
    """Return where a variant's calibration text was named, or what takes a text of its own: an
    option, or what was asked for of a device that has it by default."""
    names = ("imatrix", "text", "method", "quality", "target_size", "target_kl", "kv_cache")
    given = (name for name in names if getattr(request.options, name, None) is not None)
    if named := next(given, None):
        return request.where(named)
    return request.recipe.where(request.path)


def check_skips(cells: Sequence[Cell], places: Mapping[str, str | None], *, strict: bool) -> None:
    """Raise ConfigError where all of the cells are skipped, or one is and none may be: what they
    would be in place of is not there, and whoever asked for them has to know."""
    skipped = [cell for cell in cells if cell.skip]
    if not skipped or (len(skipped) < len(cells) and not strict):
        return
    if len(skipped) == len(cells):
        what = "nothing is left to build: " + (
            "the only cell is skipped" if len(cells) == 1 else f"all {len(cells)} cells are skipped"
        )
        first = Problem(what, COMMAND_LINE, "ask for what these devices and this model can have")
    else:
        first = Problem(
            f"{len(skipped)} of {len(cells)} cells are skipped",
            f"{COMMAND_LINE}: --strict",
            "take them out of the recipe, or leave them out with --skip",
        )
    raise ConfigError(
        first,
        *(Problem(f"{cell.id} is skipped: {cell.skip}", places.get(cell.id)) for cell in skipped),
    )


def _choose(cells: tuple[Cell, ...], only: Sequence[str], skip: Sequence[str]) -> tuple[Cell, ...]:
    # Ids are composed text: a shell, or a file's name that was pasted, may decompose accents.
    only, skip = ([unicodedata.normalize("NFC", glob) for glob in globs] for globs in (only, skip))
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
