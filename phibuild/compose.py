"""Overrides to a build configuration. The only module that imports Hydra.

Hydra composes each recipe once; sweeps (`-m`) become axes that `matrix.py` expands. Overrides are
parsed with Hydra's own grammar. `recipe` picks a file of `recipes/`; `model`, `device`, `backend`
and `precision` select from what the recipe names.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, ValidationError

from phibuild.catalogue import Catalogue, locate, shipped_root, validation_problems
from phibuild.errors import ConfigError, Problem, suggest
from phibuild.schema import PRECISIONS, Evaluation, ExecutorSettings, Frozen, Gates
from phibuild.yamlfile import Path_, YamlFile

AXES = ("recipe", "model", "device", "backend", "precision")
_GROUPS = ("evaluation", "executor")
COMMAND_LINE = "command line"


class BuildConfig(Frozen):
    """One recipe, composed. `devices`: device -> backend -> precisions, as a list or as a mapping
    to options; `backends`: backend -> precision -> options, for the whole recipe."""

    description: str = ""
    model: str
    devices: dict[str, dict[str, Any]]
    backends: dict[str, dict[str, Any]] = Field(default_factory=dict)
    gates: Gates = Gates()
    evaluation: Evaluation = Field(default_factory=Evaluation)
    executor: ExecutorSettings = Field(default_factory=ExecutorSettings)


@dataclass(frozen=True)
class Recipe:
    """A composed recipe, the files it came from (itself first) and the overrides on top."""

    name: str
    config: BuildConfig
    files: tuple[YamlFile, ...]
    overrides: dict[Path_, str]

    def where(self, path: Path_) -> str | None:
        """Return where `path` of the configuration was written: a command-line word, file:line."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.overrides:
                return f"{COMMAND_LINE}: {self.overrides[path[:length]]}"
        return locate(self.files, path)


@dataclass(frozen=True)
class Composition:
    """All that the command line asked for. `axes`: selected names, absent where not restricted."""

    recipes: tuple[Recipe, ...]
    axes: dict[str, tuple[str, ...]]
    axis_words: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the run: that of the recipe, or of all of them joined."""
        return "+".join(recipe.name for recipe in self.recipes)

    def yaml(self) -> str:
        """Return the configuration, resolved, as YAML (`--cfg job`)."""
        parts = []
        for recipe in self.recipes:
            data = recipe.config.model_dump(mode="json", exclude_none=True)
            axes = {key: list(names) for key, names in self.axes.items() if key != "recipe"}
            data = {"recipe": recipe.name, **data, **axes}
            parts.append(OmegaConf.to_yaml(OmegaConf.create(data)))
        return "---\n".join(parts)


def compose_build(words: Sequence[str], catalogue: Catalogue, *, sweep: bool) -> Composition:
    """Compose the overrides `words`; `sweep` is `-m`. Raises ConfigError with every problem."""
    overrides = _parse(words)
    problems: list[Problem] = []
    axes: dict[str, tuple[str, ...]] = {}
    axis_words: dict[str, str] = {}
    rest: list[Override] = []
    for override in overrides:
        key = override.key_or_group
        if key not in AXES:
            problems += _check_plain(override)
            rest.append(override)
            continue
        axis_words[key] = override.input_line or key
        try:
            axes[key] = _axis_values(override, catalogue, sweep=sweep)
        except ConfigError as error:
            problems += error.problems
    recipe_names = axes.get("recipe", ("quickstart",))
    for name in recipe_names:
        if name not in catalogue.recipe_files:
            problems.append(
                Problem(
                    f"unknown recipe {name!r}",
                    f"{COMMAND_LINE}: {axis_words.get('recipe', name)}",
                    suggest(name, catalogue.recipe_files),
                )
            )
    if problems:
        raise ConfigError(problems)
    recipes = []
    for name in recipe_names:
        try:
            recipes.append(_compose_recipe(name, rest, axes, catalogue))
        except ConfigError as error:
            problems += [p for p in error.problems if p not in problems]
    if problems:
        raise ConfigError(problems)
    return Composition(tuple(recipes), axes, axis_words)


def _parse(words: Sequence[str]) -> list[Override]:
    parser = OverridesParser.create()
    parsed, problems = [], []
    for word in words:
        try:
            override: Override = parser.parse_override(word)
        except HydraException as error:
            reason = str(error).splitlines()[0]
            problems.append(
                Problem(
                    f"not an override: {reason}",
                    f"{COMMAND_LINE}: {word}",
                    "overrides are key=value, +key=value or ~key; quote values with spaces",
                )
            )
            continue
        parsed.append(override)
    if problems:
        raise ConfigError(problems)
    return parsed


def _check_plain(override: Override) -> Iterator[Problem]:
    """Refuse what cannot be composed into a build: sweeps of other keys, Hydra's own settings."""
    where = f"{COMMAND_LINE}: {override.input_line}"
    key = override.key_or_group
    if override.is_sweep_override():
        yield Problem(
            f"{key!r} cannot be swept",
            where,
            f"axes of a sweep: {', '.join(AXES)}; a list is written [a,b]",
        )
    if override.package is not None or key in ("recipes", "hydra/launcher", "hydra/sweeper"):
        yield Problem(f"unknown key {key!r}", where, suggest(key, [*AXES, *_GROUPS]))
    if key == "hydra" or key.startswith("hydra."):
        yield Problem("Hydra's own settings do not apply", where, "use --output DIR for the folder")


def _axis_values(override: Override, catalogue: Catalogue, *, sweep: bool) -> tuple[str, ...]:
    where = f"{COMMAND_LINE}: {override.input_line}"
    key = override.key_or_group
    if override.is_delete() or override.is_add() or override.package is not None:
        raise ConfigError(Problem(f"{key} can only be set", where, f"{key}=NAME"))
    if override.is_sweep_override():
        if not sweep:
            example = (override.input_line or "").strip()
            raise ConfigError(
                Problem(f"several values for {key!r}", where, f"add -m to sweep: -m {example}")
            )
        value = override.value()
        if isinstance(value, Glob):
            known = _known_names(key, catalogue)
            chosen = [
                name
                for name in known
                if any(fnmatch.fnmatchcase(name, pattern) for pattern in value.include)
                and not any(fnmatch.fnmatchcase(name, pattern) for pattern in value.exclude)
            ]
            if not chosen:
                raise ConfigError(Problem(f"no {key} matches", where, f"known: {', '.join(known)}"))
            return tuple(chosen)
        values = [_plain(item) for item in override.sweep_iterator()]
        return tuple(dict.fromkeys(values))
    value = override.value()
    if isinstance(value, (list, dict)):
        raise ConfigError(
            Problem(f"{key} takes one name, not {_kind(value)}", where, f"to sweep: -m {key}=a,b")
        )
    if value is None or value == "":
        raise ConfigError(Problem(f"{key} needs a name", where))
    return (_plain(value),)


def _plain(value: object) -> str:
    return re.sub(r"^(['\"])(.*)\1$", r"\2", str(value))


def _kind(value: object) -> str:
    return "a list" if isinstance(value, list) else "a mapping"


def _known_names(axis: str, catalogue: Catalogue) -> list[str]:
    if axis == "precision":
        return list(PRECISIONS)
    return sorted(catalogue.files(axis))


class _UserRoots(SearchPathPlugin):
    """Puts the user's folders before phibuild's own."""

    roots: tuple[Path, ...] = ()

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for root in reversed(self.roots):
            search_path.prepend(provider="phibuild-user", path=f"file://{root}")


def _recipe_chain(name: str, catalogue: Catalogue) -> tuple[YamlFile, ...]:
    """Return the recipe's file and those of the recipes in its defaults list, checked as data."""
    found: dict[str, YamlFile] = {}
    problems: list[Problem] = []

    def visit(current: str) -> None:
        file = catalogue.recipe_files[current]
        found[current] = file
        try:
            problems.extend(file.check())
        except ConfigError as error:
            problems.extend(error.problems)
            return
        for entry, line in file.entries("defaults"):
            if entry == "_self_" or entry in found:
                continue
            if entry not in catalogue.recipe_files:
                problems.append(
                    Problem(
                        f"unknown recipe {entry!r} in the defaults list",
                        f"{file.shown}:{line}",
                        suggest(entry, catalogue.recipe_files),
                    )
                )
            else:
                visit(entry)

    visit(name)
    if problems:
        raise ConfigError(problems)
    return tuple(found.values())


def _compose_recipe(
    name: str, rest: Sequence[Override], axes: dict[str, tuple[str, ...]], catalogue: Catalogue
) -> Recipe:
    files = _recipe_chain(name, catalogue)
    words = [f"recipes@_global_={name}"]
    written: dict[Path_, str] = {}
    for override in rest:
        line = override.input_line or ""
        key = override.key_or_group
        if key in _GROUPS:
            known = catalogue.files(key)
            value = _plain(override.value())
            if value not in known:
                raise ConfigError(
                    Problem(
                        f"unknown {key} {value!r}", f"{COMMAND_LINE}: {line}", suggest(value, known)
                    )
                )
            words.append(line)
        elif override.is_delete():
            words.append(line)
        else:
            # Unknown keys are found by the schema afterwards, with a suggestion; Hydra's own
            # advice for a misspelled key would be to add it.
            words.append("++" + line.lstrip("+"))
            written[tuple(key.split("."))] = line
    config = _hydra_compose(words, catalogue, files)
    data = OmegaConf.to_container(config, resolve=True)
    assert isinstance(data, dict)
    recipe_problem = _empty_problem(data, files)
    if recipe_problem:
        raise ConfigError(recipe_problem)
    if "model" in axes and len(axes["model"]) == 1:
        data["model"] = axes["model"][0]
    try:
        built = BuildConfig.model_validate(data)
    except ValidationError as error:
        problems = validation_problems(error, BuildConfig, files)
        shell = Recipe(name, BuildConfig(model="", devices={}), files, written)
        raise ConfigError(
            [_prefer_command_line(problem, shell, error) for problem in problems]
        ) from error
    return Recipe(name, built, files, written)


def _prefer_command_line(problem: Problem, recipe: Recipe, error: ValidationError) -> Problem:
    """Blame the command line where an override wrote the value."""
    for detail in error.errors(include_url=False, include_context=False):
        path = tuple(str(part) for part in detail["loc"] if part != "[key]")
        name = ".".join(path)
        if name in problem.what or repr(path[-1]) in problem.what:
            where = recipe.where(path)
            if where and where.startswith(COMMAND_LINE):
                return Problem(problem.what, where, problem.remedy)
    return problem


def _empty_problem(data: dict[Any, Any], files: Sequence[YamlFile]) -> Problem | None:
    if not data.get("devices"):
        where = locate(files, ("devices",)) or f"{files[0].shown}:1"
        return Problem(
            "the recipe names no devices",
            where,
            "add: devices: {raspberry_pi_5: {llamacpp: [int4]}}",
        )
    return None


def _hydra_compose(words: list[str], catalogue: Catalogue, files: Sequence[YamlFile]) -> DictConfig:
    shipped = shipped_root("conf").resolve()
    own = [root for root in catalogue.conf_roots if root != shipped]
    # A recipe lies in a folder called `recipes`, the group; its parent is the search root.
    _UserRoots.roots = (*own, *(root.parent for root in catalogue.recipe_roots))
    Plugins.instance().register(_UserRoots)
    try:
        with initialize_config_dir(str(shipped), job_name="phibuild", version_base="1.3"):
            return compose(config_name="phibuild", overrides=words)
    except (HydraException, OmegaConfBaseException) as error:
        reason = " ".join(str(error).split())
        where = next(
            (f"{COMMAND_LINE}: {w}" for w in words if w.startswith("~") and w[1:] in reason),
            files[0].shown,
        )
        raise ConfigError(Problem(f"cannot be composed: {reason}", where)) from error
