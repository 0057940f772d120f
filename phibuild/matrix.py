"""Composed recipes to cells: devices x backends x precisions x models, with every skip's reason."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from phibuild.backends.registry import backend
from phibuild.catalogue import Catalogue
from phibuild.checkpoint import Checkpoint
from phibuild.compose import Composition
from phibuild.errors import ConfigError, PhibuildError, Problem, SourceError
from phibuild.models import Fetch, model_name, resolve_model
from phibuild.overrides import COMMAND_LINE
from phibuild.recipe import Recipe
from phibuild.schema import Cell, Device, Skip, Variant
from phibuild.squares import Expansion, Square, check_axes, read_squares


@dataclass(frozen=True)
class Matrix:
    """All cells of a run, and what they refer to by name."""

    cells: tuple[Cell, ...]
    models: Mapping[str, Checkpoint]
    devices: Mapping[str, Device]


def expand(
    composition: Composition,
    catalogue: Catalogue,
    *,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    fetch: Fetch = "never",
) -> Matrix:
    """Return the matrix. `only` and `skip` are globs on cell ids; `fetch` says when Hub models
    are downloaded.

    Raises ConfigError or SourceError with all that is wrong.
    """
    state = Expansion(composition, catalogue, list(composition.problems))
    squares = [(recipe, list(read_squares(recipe, state))) for recipe in composition.recipes]
    if not composition.problems:
        check_axes(state)
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
    state: Expansion,
    problems: list[Problem],
    *,
    fetch: Fetch,
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


def _add_cell(
    square: Square,
    recipe: Recipe,
    checkpoint: Checkpoint,
    cells: dict[str, Cell],
    state: Expansion,
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
    square: Square, device: Device, checkpoint: Checkpoint, state: Expansion
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
