"""From a command line to a matrix and a plan; shared by `build` and `plan`."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from dataclasses import dataclass

from phibuild.catalogue import Catalogue
from phibuild.compose import Composition, compose_build
from phibuild.errors import ConfigError, Problem
from phibuild.integrity import forget_sources, set_damaged_aside
from phibuild.machine import usable_memory
from phibuild.matrix import expand
from phibuild.models import Fetch
from phibuild.places import store_folder, user_path
from phibuild.plan import make_plan
from phibuild.schema import ExecutorSettings, SlurmSettings
from phibuild.steps import Plan
from phibuild.store import Store
from phibuild.uses import nothing_removed


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
    fetch: Fetch = "never"
    if build:
        fetch = "always" if arguments.refresh else "missing"
    first = composition.recipes[0].config
    for recipe in composition.recipes[1:]:
        if (recipe.config.evaluation, recipe.config.executor) != (first.evaluation, first.executor):
            raise ConfigError(
                Problem(
                    f"recipes {composition.recipes[0].name} and {recipe.name} ask for different "
                    "evaluation or executor settings",
                    recipe.where(("evaluation",)) or recipe.where(("executor",)),
                    "build them one after the other",
                )
            )
    matrix = expand(
        composition,
        make_catalogue(arguments),
        only=arguments.only,
        skip=arguments.skip,
        fetch=fetch,
    )
    store = Store(store_folder(), say=_tell)
    if stack is not None:
        store.prepare()
        stack.enter_context(nothing_removed(store))
        if arguments.verify:
            forget_sources(matrix.models.values(), store)
    limit = _memory_limit(first.executor)

    def planned() -> Plan:
        return make_plan(matrix, first.evaluation, store, read_weights=build, memory_limit=limit)

    plan = planned()
    if build and arguments.verify and set_damaged_aside(plan, store):
        plan = planned()
    if build and plan.steps:
        store.require_writable()
    return Prepared(composition, plan, store, first.executor)


def _memory_limit(settings: ExecutorSettings | SlurmSettings) -> int | None:
    """Return the most memory that a step can be given, None if that is not known."""
    if isinstance(settings, SlurmSettings):
        from phibuild.execute.slurm.submit import memory_limit

        return memory_limit(settings)
    return settings.memory or usable_memory()


def _tell(text: str) -> None:
    print(text, file=sys.stderr)
