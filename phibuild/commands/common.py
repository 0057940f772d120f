"""From a command line to a matrix and a plan; shared by `build` and `plan`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from phibuild.checkpoints.resolve import Fetch
from phibuild.config.catalogue import Catalogue
from phibuild.config.compose import Composition, compose_build
from phibuild.config.edits import COMMAND_LINE
from phibuild.config.executors import ExecutorSettings, SlurmSettings
from phibuild.errors import ConfigError, Problem
from phibuild.planning.integrity import forget_sources, set_damaged_aside
from phibuild.planning.making import evaluation_text, make_plan
from phibuild.planning.matrix import Matrix, expand
from phibuild.planning.plan import Plan
from phibuild.report.baselines import load_baselines, with_baselines
from phibuild.store.store import Store
from phibuild.store.uses import nothing_removed
from phibuild.system.machine import usable_memory
from phibuild.system.places import store_folder, user_path


@dataclass(frozen=True)
class Prepared:
    """A command line that has been understood."""

    composition: Composition
    plan: Plan
    store: Store
    executor: ExecutorSettings | SlurmSettings


def make_catalogue(arguments: argparse.Namespace) -> Catalogue:
    """Return the catalogue with the user's `--config-dir`, which must exist."""
    if not arguments.config_dir:
        return Catalogue()
    folder = user_path(arguments.config_dir, "--config-dir")
    if not folder.is_dir():
        raise ConfigError(Problem("no such folder", f"--config-dir {arguments.config_dir}"))
    return Catalogue(folder.resolve())


def compose(arguments: argparse.Namespace) -> Composition:
    """Compose the overrides of a command line."""
    return compose_build(arguments.overrides, make_catalogue(arguments), sweep=arguments.multirun)


def prepare(
    arguments: argparse.Namespace, composition: Composition, stack: ExitStack | None = None
) -> Prepared:
    """Expand and plan. For a build, which has a stack for what it holds, Hub models are fetched and
    checkpoints hashed, and nothing is removed from the store until the stack is left."""
    build = stack is not None
    first = composition.recipes[0].config
    for recipe in composition.recipes[1:]:
        for key in ("evaluation", "executor", "allow_nonfinite"):
            if getattr(recipe.config, key) != getattr(first, key):
                what = (
                    f"recipes {composition.recipes[0].name} and {recipe.name} differ in {key}, "
                    "which a run has one of"
                )
                remedy = "build them one after the other"
                raise ConfigError(Problem(what, recipe.where((key,)), remedy))
    store = Store(store_folder(), say=_tell)
    baselines = load_baselines(composition, user_path(arguments.output, "--output"))

    def expanded(fetch: Mapping[str, Fetch]) -> Matrix:
        matrix = expand(
            composition,
            make_catalogue(arguments),
            only=arguments.only,
            skip=arguments.skip,
            fetch=fetch,
            strict=arguments.strict,
        )
        return with_baselines(matrix, baselines)

    def planned(*, read_weights: bool) -> Plan:
        return make_plan(
            matrix,
            first.evaluation,
            store,
            read_weights=read_weights,
            memory_limit=limit,
            allow_nonfinite=first.allow_nonfinite,
        )

    # What cannot be built, or not be judged fairly, is said before anything is fetched or hashed.
    matrix = expanded({})
    check_texts(matrix, composition)
    limit = _memory_limit(first.executor)
    plan = planned(read_weights=False)
    if not build or plan.source_digests.keys() == matrix.models.keys() or not store.has_artifacts():
        _check_refusals(plan)
    if build:
        fetch = _to_fetch(matrix, refresh=arguments.refresh)
        matrix = expanded(fetch) if fetch else matrix
    if stack is not None:
        store.prepare()
        stack.enter_context(nothing_removed(store))
        if arguments.verify:
            forget_sources(matrix.models.values(), store)
    if build:
        plan = planned(read_weights=True)
        checked: set[tuple[str, str]] = set()
        while arguments.verify and set_damaged_aside(plan, store, checked):
            plan = planned(read_weights=True)
        _check_refusals(plan)
        if plan.steps:
            store.require_writable()
    return Prepared(composition, plan, store, first.executor)


def check_texts(matrix: Matrix, composition: Composition) -> None:
    """Raise ConfigError where artifacts would be judged on the text that their importance matrix
    was taken from, or one within the other: they would come out better than they are."""
    recipe = composition.recipes[0]
    evaluation = recipe.config.evaluation
    if not evaluation.enabled or not matrix.calibrations:
        return
    judged = _words(evaluation_text(evaluation))
    own = recipe.where(("evaluation", "text")) if evaluation.text else "phibuild's held-out text"
    problems: dict[Problem, None] = {}
    for cell in matrix.cells:
        texts = cell.variant.texts if cell.variant else ()
        if any(_overlap(_words(text.path), judged) for text in texts):
            problem = Problem(
                f"the calibration text is the one that artifacts are judged on ({own})",
                matrix.calibrations[cell.id],
                "calibrate on another text, or set evaluation.text to one that it has not seen",
            )
            problems[problem] = None
    if problems:
        raise ConfigError(*problems)


def _overlap(one: str, other: str) -> bool:
    return bool(one) and (one in other or other in one)


@cache
def _words(path: Path) -> str:
    """Return a text with every white space as one space: line ends make no other text."""
    return " ".join(path.read_text(encoding="utf-8").split())


def _to_fetch(matrix: Matrix, *, refresh: bool) -> dict[str, Fetch]:
    """Return which of the models have to be fetched from the Hub, since something is built of them:
    those that are not here, or maybe not with all their files, and with `refresh` all of the Hub's.
    """
    needed = {cell.model for cell in matrix.cells if cell.variant}
    return {
        name: "always" if refresh else "missing"
        for name, model in matrix.models.items()
        if name in needed and (model.is_estimate or model.lacking or (refresh and model.commit))
    }


def _check_refusals(plan: Plan) -> None:
    """Raise ConfigError where no artifact is there and none can be built, for want of memory."""
    refused = {key: one for one in plan.refusals if one.stops == "build" for key in one.artifacts}
    wanted = [artifact for artifact in plan.artifacts if artifact.cells]
    if not all(artifact.key in refused and not artifact.cached for artifact in wanted):
        return
    problems = [
        Problem(refused[artifact.key].reason, cell, refused[artifact.key].remedy)
        for artifact in wanted
        for cell in artifact.cells
    ]
    raise ConfigError(
        Problem("nothing is left to build: no step has the memory", COMMAND_LINE), *problems
    )


def _memory_limit(settings: ExecutorSettings | SlurmSettings) -> int | None:
    """Return the most memory that a step can be given, None if that is not known."""
    if settings.kind == "slurm":
        from phibuild.execute.slurm.submit import memory_limit

        return memory_limit(settings)
    return settings.memory or usable_memory()


def _tell(text: str) -> None:
    print(text, file=sys.stderr)
