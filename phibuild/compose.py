"""Overrides to a build configuration. The only module that imports Hydra.

Hydra composes each recipe once; sweeps (`-m`) become axes that `matrix.py` expands. Overrides are
parsed with Hydra's own grammar. `recipe` picks a file of `recipes/`; `model`, `device`, `backend`
and `precision` select from what the recipe names.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, ValidationError

from phibuild.catalogue import Catalogue, locate, shipped_root, validation_problems
from phibuild.errors import ConfigError, Problem, suggest
from phibuild.schema import PRECISIONS, Evaluation, ExecutorSettings, Frozen, Gates
from phibuild.yamlfile import Path_, YamlFile, refused_interpolation

AXES = ("recipe", "model", "device", "backend", "precision")
# Groups of conf/ besides the axes, with what conf/phibuild.yaml chooses.
_GROUPS = {"evaluation": "standard", "executor": "local"}
_MAPPINGS = ("devices", "backends", "gates", *_GROUPS)
_EXAMPLE = "add: devices: {raspberry_pi_5: {llamacpp: [int4]}}"
_MAX_NAMES = 1000
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
    """A composed recipe, the files it came from (itself first), the overrides on top, and
    the files of conf/ that are chosen by name (evaluation, executor)."""

    name: str
    config: BuildConfig
    files: tuple[YamlFile, ...]
    overrides: dict[Path_, str]
    group_files: tuple[YamlFile, ...] = ()

    def where(self, path: Path_) -> str | None:
        """Return where `path` of the configuration was written: a command-line word, file:line."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.overrides:
                return f"{COMMAND_LINE}: {self.overrides[path[:length]]}"
        files = (*self.files, *self.group_files)
        if not any(file.line_of(path)[0] == len(path) for file in files):
            for key, word in self.overrides.items():
                if key[: len(path)] == path:
                    return f"{COMMAND_LINE}: {word}"
        return locate(files, path) or f"{self.files[0].shown}:1"


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
    overrides = _parse(words)
    problems: list[Problem] = []
    axes: dict[str, tuple[str, ...]] = {}
    axis_words: dict[str, str] = {}
    globs: set[str] = set()
    rest: list[Override] = []
    for override in overrides:
        key = override.key_or_group
        word = override.input_line or key
        if refused := refused_interpolation(word):
            problems.append(Problem(refused, f"{COMMAND_LINE}: {word}", "write the value itself"))
        elif key not in AXES:
            problems += _check_plain(override)
            rest.append(override)
        elif key in axis_words:
            where = f"{COMMAND_LINE}: {word}"
            problems.append(Problem(f"{key} is given twice", where, f"to sweep: -m {key}=a,b"))
        else:
            axis_words[key] = word
            try:
                axes[key] = _axis_values(override, catalogue, sweep=sweep)
            except ConfigError as error:
                problems += error.problems
            if isinstance(override.value(), Glob):
                globs.add(key)
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
    found: dict[Problem, None] = {}
    complete = True
    for name in recipe_names:
        try:
            recipe, wrong = _compose_recipe(name, rest, axes, catalogue)
            recipes.append(recipe)
            found.update(dict.fromkeys(wrong))
        except ConfigError as error:
            complete = False
            found.update(dict.fromkeys(error.problems))
    if not complete:
        raise ConfigError(found)
    return Composition(tuple(recipes), axes, axis_words, frozenset(globs), tuple(found))


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
        if override.key_or_group:
            parsed.append(override)
        else:
            problems.append(Problem("not an override: no key", f"{COMMAND_LINE}: {word}",
                                    "overrides are key=value, +key=value or ~key"))  # fmt: skip
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
    if key.split(".")[0].split("/")[0] == "hydra":
        yield Problem("Hydra's own settings do not apply", where, "use --output DIR for the folder")
    elif key == "recipes":
        yield Problem("unknown key 'recipes'", where, suggest(key, AXES))
    elif override.package is not None:
        yield Problem("a package (@) cannot be given", where, f"{key}=VALUE")
    elif key in _GROUPS and (override.is_add() or override.is_delete()):
        yield Problem(f"{key} can only be set", where, f"{key}=NAME")


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
        try:
            values = [_plain(item) for item in islice(override.sweep_iterator(), _MAX_NAMES + 1)]
        except HydraException as error:
            raise ConfigError(
                Problem("this kind of sweep has no list of values", where, f"-m {key}=a,b")
            ) from error
        if len(values) > _MAX_NAMES:
            raise ConfigError(Problem(f"more than {_MAX_NAMES} names for {key!r}", where))
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
    """Puts the user's conf folders before phibuild's own; after it the folders that hold
    `recipes/`, which may hold anything else besides."""

    own: tuple[Path, ...] = ()
    recipes: tuple[Path, ...] = ()

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for root in reversed(self.own):
            search_path.prepend(provider="phibuild-user", path=f"file://{root}")
        for root in self.recipes:
            search_path.append(provider="phibuild-recipes", path=f"file://{root}")


def _recipe_chain(name: str, catalogue: Catalogue) -> tuple[YamlFile, ...]:
    """Return the recipe's file and those of the recipes in its defaults list, checked as data."""
    found: dict[str, YamlFile] = {}
    problems: list[Problem] = []

    def visit(current: str, above: tuple[str, ...]) -> None:
        file = catalogue.recipe_files[current]
        found[current] = file
        try:
            wrong = file.check()
        except ConfigError as error:
            problems.extend(error.problems)
            return
        if wrong and file.root is None:
            wrong = [replace(problem, remedy=_EXAMPLE) for problem in wrong]
        problems.extend(wrong)
        entries = file.entries("defaults")
        if entries is None:
            where = locate([file], ("defaults",))
            what = "defaults must be a list of recipes"
            problems.append(Problem(what, where, "for example [mobile, _self_]"))
        seen: set[str] = set()
        for entry, line in entries or ():
            where = f"{file.shown}:{line}"
            if entry is None:
                problems.append(
                    Problem("an entry of the defaults list is the name of a recipe", where,
                            "set other things by key: evaluation: {windows: 8}")
                )  # fmt: skip
            elif entry in seen:
                problems.append(Problem(f"{entry!r} stands twice in the defaults list", where))
            elif entry in (current, *above):
                problems.append(Problem(f"recipe {entry!r} contains itself", where))
            elif entry != "_self_" and entry not in catalogue.recipe_files:
                problems.append(
                    Problem(
                        f"unknown recipe {entry!r} in the defaults list",
                        where,
                        suggest(entry, catalogue.recipe_files),
                    )
                )
            elif entry != "_self_" and entry in found:
                problems.append(
                    Problem(f"recipe {entry!r} comes twice", where, "remove it from one list")
                )
            elif entry != "_self_":
                visit(entry, (*above, current))
            seen.add(entry or "")

    visit(name, ())
    if problems:
        raise ConfigError(problems)
    return tuple(found.values())


def _group_files(rest: Sequence[Override], catalogue: Catalogue) -> tuple[YamlFile, ...]:
    """Return the files of conf/evaluation and conf/executor that are chosen, checked as data."""
    chosen = dict(_GROUPS)
    problems: list[Problem] = []
    for override in rest:
        key = override.key_or_group
        if key in _GROUPS:
            chosen[key] = _plain(override.value())
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


def _compose_recipe(
    name: str, rest: Sequence[Override], axes: dict[str, tuple[str, ...]], catalogue: Catalogue
) -> tuple[Recipe, list[Problem]]:
    """Return the recipe and what is wrong with it, which it then lacks. Raises ConfigError where
    nothing can be made of it."""
    files, groups = _recipe_chain(name, catalogue), _group_files(rest, catalogue)
    clashes = list(_clashes((*files, *groups)))
    if clashes:
        raise ConfigError(clashes)
    words = [f"recipes@_global_={name}"]
    written: dict[Path_, str] = {}
    for override in rest:
        line = override.input_line or ""
        key = override.key_or_group
        if key in _GROUPS or override.is_delete():
            words.append(line)
        else:
            # Unknown keys are found by the schema afterwards, with a suggestion; Hydra's own
            # advice for a misspelled key would be to add it.
            words.append("++" + line.lstrip("+"))
            written[tuple(key.split("."))] = line
    shell = Recipe(name, BuildConfig(model="", devices={}), files, written, groups)
    data = _hydra_compose(words, catalogue, shell)
    if len(axes.get("model", ())) == 1:
        data["model"] = axes["model"][0]
    config, problems = _validate(data, shell)
    return replace(shell, config=config), problems + _text_problems(config, shell)


def _clashes(files: Sequence[YamlFile]) -> Iterator[Problem]:
    """Yield where one file has a list and another, or the schema, a mapping: these do not merge."""
    kinds: dict[Path_, tuple[str, str]] = {(key,): ("a mapping", "") for key in _MAPPINGS}

    def visit(value: object, path: Path_, file: YamlFile) -> Iterator[Problem]:
        if not isinstance(value, (dict, list)):
            return
        kind, where = _kind(value), locate([file], path) or file.shown
        known, other = kinds.setdefault(path, (kind, where))
        if kind != known:
            told = f" as in {other}" if other else ""
            name = ".".join(str(part) for part in path)
            yield Problem(f"{name}: must be {known}{told}, not {kind}", where)
        elif isinstance(value, dict):
            for key, child in value.items():
                yield from visit(child, (*path, key), file)

    for file in reversed(files):
        yield from visit(file.data(), file.prefix, file)


def _validate(data: dict[str, Any], shell: Recipe) -> tuple[BuildConfig, list[Problem]]:
    """Return the configuration without what is wrong with it, and that."""
    problems: list[Problem] = []
    for file in shell.files:
        if file.line_of(("hydra",))[0]:
            problems.append(Problem("unknown key 'hydra'", locate([file], ("hydra",)),
                                    "a recipe has no settings of Hydra"))  # fmt: skip
    if not data.get("devices"):
        problems.append(Problem("the recipe names no devices", shell.where(("devices",)), _EXAMPLE))
        data["devices"] = {}
    try:
        return BuildConfig.model_validate(data), problems
    except ValidationError as error:
        problems += validation_problems(error, BuildConfig, shell.where)
        for detail in error.errors(include_url=False, include_context=False):
            _prune(data, detail["loc"])
    try:
        return BuildConfig.model_validate({"model": "", "devices": {}, **data}), problems
    except ValidationError as error:
        raise ConfigError(problems) from error


def _prune(data: Any, path: Path_) -> None:
    """Delete the deepest key of `path` that the data has."""
    last = None
    for key in path:
        if not isinstance(data, dict) or key not in data:
            break
        last = (data, key)
        data = data[key]
    if last is not None:
        del last[0][last[1]]


def _text_problems(config: BuildConfig, recipe: Recipe) -> list[Problem]:
    """Return what is wrong with a judging text of the user's own."""
    if config.evaluation.text is None:
        return []
    where = recipe.where(("evaluation", "text"))
    path = Path(config.evaluation.text)
    name = f"evaluation.text {config.evaluation.text!r}"
    try:
        path.expanduser().read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return [Problem(f"{name} is not UTF-8 text", where)]
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        return [Problem(f"{name} cannot be read: {reason}", where, "give the path of a text file")]
    return []


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
