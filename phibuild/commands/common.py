"""From a command line to a matrix and a plan; shared by `build` and `plan`."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from phibuild.catalogue import Catalogue
from phibuild.compose import Composition, compose_build
from phibuild.errors import ConfigError, Problem
from phibuild.matrix import expand
from phibuild.places import store_folder, user_path
from phibuild.plan import make_plan
from phibuild.schema import ExecutorSettings, SlurmSettings
from phibuild.steps import Plan
from phibuild.store import Store


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


def prepare(arguments: argparse.Namespace, composition: Composition, *, build: bool) -> Prepared:
    """Expand and plan. With `build`, Hub models are fetched and checkpoints hashed."""
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
        fetch=build,
    )
    store = Store(store_folder())
    if build:
        store.prepare()
    plan = make_plan(matrix, first.evaluation, store, read_weights=build)
    return Prepared(composition, plan, store, first.executor)
