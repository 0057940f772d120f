"""What is wrong with recipes and files of conf/, by those who read them for a build: without a
build, without the network and without a model that is not phibuild's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from phibuild.backends.registry import BACKENDS
from phibuild.checkpoints.facts import Checkpoint
from phibuild.checkpoints.resolve import known_checkpoint
from phibuild.config.catalogue import Catalogue
from phibuild.config.compose import Composition, compose_build
from phibuild.config.edits import COMMAND_LINE
from phibuild.config.model_choice import ModelChoice
from phibuild.config.own_files import Group
from phibuild.config.recipe import NO_DEVICES, NO_MODEL
from phibuild.config.yamlfile import YamlFile
from phibuild.errors import ConfigError, PhibuildError, Place, Problem, suggest
from phibuild.planning.cell_requests import CellRequest, read_cell_requests
from phibuild.planning.cells import make_cells
from phibuild.planning.matrix import Matrix, calibration_place, check_limits, check_skips
from phibuild.planning.options import Expansion, merge_options
from phibuild.schema import PRECISIONS

_RECIPE = "quickstart"
"""What files of evaluation and executor are composed with: phibuild's own of that name."""


@dataclass
class Findings:
    """What was found in some files, each problem once."""

    problems: dict[Problem, None] = field(default_factory=dict)
    matrices: list[tuple[Composition, Matrix]] = field(default_factory=list)
    """Of recipes without a problem whose model is known."""

    def add(self, *problems: Problem, start: Place) -> None:
        """Add problems of a file; what is said of the words that stand for it is said of it."""
        for problem in problems:
            word = problem.where is None or problem.where.startswith(COMMAND_LINE)
            self.problems[replace(problem, where=start) if word else problem] = None


def check_file(group: Group, name: str, catalogue: Catalogue, findings: Findings) -> None:
    """Add what is wrong with a file of the catalogue, by group ("recipe", "device", ...)."""
    file = catalogue.files(group)[name]
    try:
        _CHECKS[group](name, file, catalogue, findings)
    except PhibuildError as error:
        findings.add(*error.problems, start=file.start)


def _recipe(name: str, file: YamlFile, catalogue: Catalogue, findings: Findings) -> None:
    composition = compose_build([f"recipe={name}"], catalogue, sweep=False)
    recipe = composition.recipes[0]
    problems = list(composition.problems)
    is_part = NO_DEVICES in (problem.what for problem in problems) and _is_part(name, catalogue)
    if is_part:
        problems = [problem for problem in problems if problem.what != NO_DEVICES]
    state = Expansion(composition, catalogue, problems)
    choice = recipe.config.model
    checkpoint, requests = None, list[CellRequest]()
    try:
        requests = list(read_cell_requests(recipe, state))
        if choice != NO_MODEL or not composition.problems:
            checkpoint = known_checkpoint(
                choice, catalogue, where=lambda key: recipe.where(("model", key))
            )
    except PhibuildError as error:
        state.problems += error.problems
    if checkpoint and not is_part:
        matrix = _matrix(requests, checkpoint, state)
        if matrix and not state.problems:
            findings.matrices.append((composition, matrix))
    findings.add(*state.problems, start=file.start)


def _matrix(requests: list[CellRequest], checkpoint: Checkpoint, state: Expansion) -> Matrix | None:
    """Return the cells of a recipe; None if there are none. Notes what is wrong with them."""
    recipe = state.composition.recipes[0]
    made = list(make_cells([requests], checkpoint, state))
    cells = tuple(cell for cell, _ in made)
    check_limits(recipe, cells, state)
    if state.problems or not cells:
        return None
    places = {cell.id: recipe.where(request.path) for cell, request in made if cell.skip}
    try:
        check_skips(cells, places, strict=False)
    except ConfigError as error:
        state.problems += error.problems
    texts = {
        cell.id: calibration_place(request)
        for cell, request in made
        if cell.variant and cell.variant.texts
    }
    return Matrix(cells, {checkpoint.name: checkpoint}, state.devices, texts)


def _is_part(name: str, catalogue: Catalogue) -> bool:
    """Say whether a recipe stands in the defaults list of another one."""
    for other, file in catalogue.recipe_files.items():
        try:
            entries = [] if other == name or file.check() else file.entries("defaults")
        except ConfigError:
            continue
        if name in (entry for entry, _ in entries or ()):
            return True
    return False


def _device(name: str, file: YamlFile, catalogue: Catalogue, findings: Findings) -> None:
    state = Expansion(Composition((), {}), catalogue)
    state.known_device(name)
    findings.add(*state.problems, start=file.start)


def _model(name: str, file: YamlFile, catalogue: Catalogue, findings: Findings) -> None:
    known_checkpoint(ModelChoice(path=name), catalogue)


def _chosen(group: Group) -> Callable[[str, YamlFile, Catalogue, Findings], None]:
    """Return what checks a file that a run has one of."""

    def check(name: str, file: YamlFile, catalogue: Catalogue, findings: Findings) -> None:
        shipped = Catalogue(shipped_alone=True).recipe_files[_RECIPE]
        given = {**catalogue.given, "recipe": {_RECIPE: shipped.path}}
        words = [f"recipe={_RECIPE}", f"{group}={name}"]
        composition = compose_build(words, replace(catalogue, given=given), sweep=False)
        findings.add(*composition.problems, start=file.start)

    return check


def _backend(name: str, file: YamlFile, catalogue: Catalogue, findings: Findings) -> None:
    if name not in BACKENDS:
        remedy = f"a file of conf/backend is called as its backend is; {suggest(name, BACKENDS)}"
        findings.add(Problem(f"unknown backend {name!r}", file.start, remedy), start=file.start)
        return
    defaults = catalogue.backend_defaults(name)
    state = Expansion(Composition((), {}), catalogue)
    for precision in PRECISIONS:
        if precision in defaults and state.knows(name, file.start):
            merge_options(name, precision, state)
    findings.add(*state.problems, start=file.start)


_CHECKS: Mapping[Group, Callable[[str, YamlFile, Catalogue, Findings], None]] = {
    "recipe": _recipe,
    "device": _device,
    "model": _model,
    "evaluation": _chosen("evaluation"),
    "executor": _chosen("executor"),
    "backend": _backend,
}
