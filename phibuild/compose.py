"""Overrides to a build configuration: Hydra composes each recipe once.

Sweeps (`-m`) become axes that `matrix.py` expands. `recipe` picks a file of `recipes/`; `model`,
`device`, `backend` and `precision` select from what the recipe names. Hydra is imported here and,
for its grammar, in `overrides.py` alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from phibuild.catalogue import Catalogue, shipped_root
from phibuild.errors import ConfigError, Problem, suggest
from phibuild.overrides import COMMAND_LINE, GROUPS, Words, plain_value, read_words
from phibuild.recipe import BuildConfig, Recipe, clashes, recipe_chain, validate_recipe
from phibuild.yamlfile import Path_, YamlFile

_DEFAULT_RECIPE = "quickstart"


@dataclass(frozen=True)
class Composition:
    """All that the command line asked for. `axes`: selected names, absent where not restricted;
    `globs`: the axes whose names come from a glob; `problems`: what is wrong with the recipes,
    which then lack what is wrong: the matrix adds what it finds, so that all is shown at once."""

    recipes: tuple[Recipe, ...]
    axes: dict[str, tuple[str, ...]]
    axis_words: dict[str, str] = field(default_factory=dict)
    globs: frozenset[str] = frozenset()
    problems: tuple[Problem, ...] = ()

    @property
    def name(self) -> str:
        """Name of the run: that of the recipe, or of all of them joined."""
        return "+".join(recipe.name for recipe in self.recipes)

    def yaml(self) -> str:
        """Return the configuration, resolved, as YAML (`--cfg job`)."""
        if self.problems:
            raise ConfigError(self.problems)
        parts = []
        for recipe in self.recipes:
            data = recipe.config.model_dump(mode="json", exclude_none=True)
            axes = {key: list(names) for key, names in self.axes.items() if key != "recipe"}
            data = {"recipe": recipe.name, **data, **axes}
            parts.append(OmegaConf.to_yaml(OmegaConf.create(data)))
        return "---\n".join(parts)


def compose_build(words: Sequence[str], catalogue: Catalogue, *, sweep: bool) -> Composition:
    """Compose the overrides `words`; `sweep` is `-m`. Raises ConfigError with every problem."""
    sorted_words = read_words(words, catalogue, sweep=sweep)
    recipes = []
    found: dict[Problem, None] = {}
    complete = True
    for name in sorted_words.axes.get("recipe", (_DEFAULT_RECIPE,)):
        try:
            recipe, wrong = _compose_recipe(name, sorted_words, catalogue)
            recipes.append(recipe)
            found.update(dict.fromkeys(wrong))
        except ConfigError as error:
            complete = False
            found.update(dict.fromkeys(error.problems))
    if not complete:
        raise ConfigError(found)
    return Composition(
        tuple(recipes),
        sorted_words.axes,
        sorted_words.axis_words,
        frozenset(sorted_words.globs),
        tuple(found),
    )


class _UserRoots(SearchPathPlugin):
    """Puts the user's conf folders before phibuild's own; after it the folders that hold
    `recipes/`, which may hold anything else besides."""

    own: tuple[Path, ...] = ()
    recipes: tuple[Path, ...] = ()

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for root in reversed(self.own):
            search_path.prepend(provider="phibuild-user", path=f"file://{root}")
        for root in self.recipes:
            search_path.append(provider="phibuild-recipes", path=f"file://{root}")


def _group_files(rest: Sequence[Override], catalogue: Catalogue) -> tuple[YamlFile, ...]:
    """Return the files of conf/evaluation and conf/executor that are chosen, checked as data."""
    chosen = dict(GROUPS)
    problems: list[Problem] = []
    for override in rest:
        key = override.key_or_group
        if key in GROUPS:
            chosen[key] = plain_value(override.value())
            known = catalogue.files(key)
            if chosen[key] not in known:
                where = f"{COMMAND_LINE}: {override.input_line}"
                what = f"unknown {key} {chosen[key]!r}"
                problems.append(Problem(what, where, suggest(chosen[key], known)))
    files = []
    for key, name in chosen.items():
        file = catalogue.files(key).get(name)
        if file is not None:
            files.append(replace(file, prefix=(key,)))
            problems += files[-1].check()
    if problems:
        raise ConfigError(problems)
    return tuple(files)


def _compose_recipe(name: str, words: Words, catalogue: Catalogue) -> tuple[Recipe, list[Problem]]:
    """Return the recipe and what is wrong with it, which it then lacks. Raises ConfigError where
    nothing can be made of it."""
    files, groups = recipe_chain(name, catalogue), _group_files(words.rest, catalogue)
    unmergeable = list(clashes((*files, *groups)))
    if unmergeable:
        raise ConfigError(unmergeable)
    lines = [f"recipes@_global_={name}"]
    written: dict[Path_, str] = {}
    for override in words.rest:
        line = override.input_line or ""
        key = override.key_or_group
        if key in GROUPS or override.is_delete():
            lines.append(line)
        else:
            # Unknown keys are found by the schema afterwards, with a suggestion; Hydra's own
            # advice for a misspelled key would be to add it.
            lines.append("++" + line.lstrip("+"))
            written[tuple(key.split("."))] = line
    shell = Recipe(name, BuildConfig(model="", devices={}), files, written, groups)
    data = _hydra_compose(lines, catalogue, shell)
    if len(words.axes.get("model", ())) == 1:
        data["model"] = words.axes["model"][0]
    config, problems = validate_recipe(data, shell)
    return replace(shell, config=config), problems


def _hydra_compose(words: list[str], catalogue: Catalogue, recipe: Recipe) -> dict[str, Any]:
    """Return what Hydra makes of the words, with `${key}` resolved."""
    shipped = shipped_root("conf").resolve()
    _UserRoots.own = tuple(root for root in catalogue.conf_roots if root != shipped)
    # A recipe lies in a folder called `recipes`, the group; its parent is the search root.
    _UserRoots.recipes = tuple(root.parent for root in catalogue.recipe_roots)
    Plugins.instance().register(_UserRoots)
    try:
        with initialize_config_dir(str(shipped), job_name="phibuild", version_base="1.3"):
            config = compose(config_name="phibuild", overrides=words)
        data = OmegaConf.to_container(config, resolve=True)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        raise ConfigError(_composition_problem(error, words, recipe)) from error
    assert isinstance(data, dict)
    return {str(key): value for key, value in data.items()}


def _composition_problem(error: Exception, words: Sequence[str], recipe: Recipe) -> Problem:
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    reason = (str(cause).splitlines() or [type(cause).__name__])[0]
    for word in words[1:]:
        deleted = word[1:].partition("=")[0] if word.startswith("~") else ""
        if deleted and f"'{deleted}' does not exist" in str(error):
            return Problem(
                f"there is no key {deleted!r} to delete",
                f"{COMMAND_LINE}: {word}",
                "'--cfg job' shows the keys",
            )
        if word in str(error) or (deleted and f"'{deleted}'" in str(error)):
            where = f"{COMMAND_LINE}: {word.removeprefix('++')}"
            return Problem(f"cannot be composed: {reason}", where)
    path = tuple(str(getattr(cause, "full_key", None) or "").split("."))
    return Problem(f"cannot be composed: {reason}", recipe.where(path))
