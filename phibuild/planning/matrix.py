"""Composed recipes to cells: devices x backends x precisions x models, with every skip's reason."""

from __future__ import annotations

import fnmatch
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from phibuild.backends.registry import backend
from phibuild.checkpoints.facts import Checkpoint
from phibuild.checkpoints.resolve import Fetch, model_name, resolve_model
from phibuild.config.catalogue import Catalogue
from phibuild.config.compose import Composition
from phibuild.config.edits import COMMAND_LINE
from phibuild.config.model_choice import ModelChoice
from phibuild.config.recipe import NO_MODEL, Recipe
from phibuild.errors import ConfigError, PhibuildError, Problem, SourceError
from phibuild.planning.options import CellRequest, Expansion, check_axes, read_cell_requests
from phibuild.schema import Cell, Device, Skip, Variant


@dataclass(frozen=True)
class Matrix:
    """All cells of a run, and what they refer to by name."""

    cells: tuple[Cell, ...]
    models: Mapping[str, Checkpoint]
    devices: Mapping[str, Device]
    calibrations: Mapping[str, str | None] = field(default_factory=dict)
    """Cell id -> where its calibration text was named."""


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
    requests = [(recipe, list(read_cell_requests(recipe, state))) for recipe in composition.recipes]
    if not composition.problems:
        check_axes(state)
    models: dict[str, Checkpoint] = {}
    source_problems: list[Problem] = []
    for recipe in composition.recipes:
        for choice in composition.models_of(recipe):
            _add_model(choice, recipe, models, state, source_problems, fetch or {})
    cells: dict[str, Cell] = {}
    places: dict[str, str | None] = {}
    calibrations: dict[str, str | None] = {}
    for recipe, wanted in requests:
        for choice in composition.models_of(recipe):
            checkpoint = models.get(model_name(choice))
            if checkpoint:
                for request in wanted:
                    cell = _add_cell(request, recipe, checkpoint, cells, state)
                    if cell and cell.skip:
                        places.setdefault(cell.id, recipe.where(request.path))
                    if cell and cell.variant and cell.variant.calibration:
                        calibrations.setdefault(cell.id, _calibration_place(request, cell.variant))
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
    _check_skips(chosen, places, strict=strict)
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


def _add_cell(
    request: CellRequest,
    recipe: Recipe,
    checkpoint: Checkpoint,
    cells: dict[str, Cell],
    state: Expansion,
) -> Cell | None:
    device = state.devices[request.device]
    variant: Variant | None
    skip: str | None
    match _variant(request, device, checkpoint, state):
        case Variant() as variant:
            skip = None
        case Skip(reason=skip):
            variant = None
        case None:
            return None
    cell = Cell(
        id=f"{checkpoint.name}.{request.device}.{request.backend}.{request.precision}",
        model=checkpoint.name,
        device=request.device,
        backend=request.backend,
        precision=request.precision,
        variant=variant,
        skip=skip,
        gates=recipe.config.gates,
    )
    known = cells.get(cell.id)
    if known and known.variant != cell.variant:
        state.note(
            f"two recipes of this run build {cell.id} differently",
            recipe.where(request.path),
            "build them one after the other",
        )
    elif known is None:
        cells[cell.id] = cell
    return cell


def _variant(
    request: CellRequest, device: Device, checkpoint: Checkpoint, state: Expansion
) -> Variant | Skip | None:
    """Ask the backend what to build; None if the options are wrong."""
    if request.options is None:
        return None
    options = request.options.model_dump_json()
    key = (checkpoint.name, device.name, request.backend, request.precision, options)
    if key not in state.variants:
        state.variants[key] = backend(request.backend).variant(
            request.precision, request.options, device, checkpoint.architecture
        )
    return state.variants[key]


def _calibration_place(request: CellRequest, variant: Variant) -> str | None:
    """Return where a variant's calibration text was named, by the option that has its digest, or
    the method that takes a text of its own."""
    assert variant.calibration is not None
    digest = variant.calibration.sha256
    option = next(name for name, value in variant.options.items() if value == digest)
    named = getattr(request.options, option) is not None
    return request.where(option if named else "method")


def _check_skips(cells: Sequence[Cell], places: Mapping[str, str | None], *, strict: bool) -> None:
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
