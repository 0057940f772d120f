"""Words of the command line to a build configuration: Hydra composes each recipe once.

Hydra gets copies of the files in which names are text and lists of precisions mappings
(`copies.py`); the words are read by its grammar and applied on top (`edits.py`), one by one, so
that an error names its word. Sweeps (`-m`) become axes that `matrix.py` expands; those over options
compose each recipe once for each combination of their values. `recipe` picks a file of `recipes/`;
`model`, `device`, `backend` and `precision` select from what the recipe names.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy, deepcopy
from dataclasses import dataclass, field, replace

import yaml
from hydra import compose, initialize_config_dir
from hydra.conf import HydraConf
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from phibuild.config.catalogue import Catalogue
from phibuild.config.copies import plain, read_copy, recipe_copies
from phibuild.config.edits import COMMAND_LINE, Edit, apply_edit, combinations
from phibuild.config.groups import chosen_files
from phibuild.config.model_choice import ModelChoice
from phibuild.config.overrides import AXES, Model, Words, read_words
from phibuild.config.recipe import (
    NO_MODEL,
    BuildConfig,
    Recipe,
    clashes,
    recipe_chain,
    validate_recipe,
)
from phibuild.config.roots import shipped_root
from phibuild.config.sweeps import MAX_COMBINATIONS
from phibuild.config.validation import validation_problems
from phibuild.config.yamlfile import Data, KeyPath, YamlFile
from phibuild.errors import ConfigError, Problem, suggest

_DEFAULT_RECIPE = "quickstart"
# The name under which Hydra is given a chosen file of conf/evaluation or conf/executor.
_CHOSEN = "chosen"
# Hydra composes its own settings (logging, launcher, sweeper, help) with each recipe, which takes
# as long as a small recipe does. phibuild uses none of them: they have no defaults here.
ConfigStore.instance().store(
    group="hydra", name="config", node=HydraConf(defaults=[]), provider="phibuild"
)


@dataclass(frozen=True)
class Composition:
    """All that the command line asked for. `axes`: selected names, absent where not restricted;
    `models`: those of a sweep over models, empty where each recipe has its own; `globs`: the axes
    whose names come from a glob; `sweeps`: those over options, of which each recipe has all
    combinations, the last one's values changing first; `problems`: what is wrong with the recipes,
    which then lack what is wrong: the matrix adds what it finds, so that all is shown at once."""

    recipes: tuple[Recipe, ...]
    axes: dict[str, tuple[str, ...]]
    models: tuple[ModelChoice, ...] = ()
    axis_words: dict[str, str] = field(default_factory=dict)
    globs: frozenset[str] = frozenset()
    sweeps: tuple[Edit, ...] = ()
    problems: tuple[Problem, ...] = ()

    @property
    def name(self) -> str:
        """Name of the run: that of the recipe, or of all of them joined."""
        return "+".join(recipe.name for recipe in self.recipes)

    @property
    def allow_nonfinite(self) -> bool:
        """Whether weights with NaN or infinity are built from; all recipes of a run agree."""
        return self.recipes[0].config.allow_nonfinite

    def models_of(self, recipe: Recipe) -> tuple[ModelChoice, ...]:
        """Return the models that a recipe of this run is built for."""
        return self.models or (recipe.config.model,)

    def yaml(self) -> str:
        """Return the configuration, resolved, as YAML (`--cfg job`)."""
        if self.problems:
            raise ConfigError(*self.problems)
        parts = []
        for recipe in self.recipes:
            data = recipe.config.model_dump(mode="json", exclude_none=True)
            axes: Data = {key: list(names) for key, names in self.axes.items()}
            axes.pop("recipe", None)
            if self.models:
                axes["model"] = [choice.model_dump() for choice in self.models]
            if self.sweeps:
                axes["sweeps"] = {sweep.key: list(sweep.values) for sweep in self.sweeps}
            data = {"recipe": recipe.name, **data, **axes}
            parts.append(OmegaConf.to_yaml(OmegaConf.create(data)))
        return "---\n".join(parts)


def compose_build(words: Sequence[str], catalogue: Catalogue, *, sweep: bool) -> Composition:
    """Compose the overrides `words`; `sweep` is `-m`. Raises ConfigError with every problem."""
    sorted_words = read_words(words, catalogue, sweep=sweep)
    models, sweeps = _swept_models(sorted_words), _sweeps(sorted_words)
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
        raise ConfigError(*found)
    return Composition(
        tuple(recipes),
        sorted_words.axes,
        models,
        sorted_words.axis_words,
        frozenset(sorted_words.globs),
        sweeps,
        tuple(found),
    )


def _swept_models(words: Words) -> tuple[ModelChoice, ...]:
    """Return the models where the command line names several; one is set in each recipe."""
    if len(words.models) < 2:
        return ()
    where = f"{COMMAND_LINE}: {words.axis_words['model']}"
    problems: dict[Problem, None] = {}
    for edit in words.edits:
        if edit.key.startswith("model."):
            remedy = f"write it into the sweep: {_example(words.models)}"
            problems[Problem("several models have no key of one", edit.where, remedy)] = None
    choices = []
    for model in words.models:
        try:
            choices.append(BuildConfig.model_validate({"model": model, "devices": {}}).model)
        except ValidationError as error:
            wrong = validation_problems(error, BuildConfig, lambda path: where)
            problems.update(dict.fromkeys(wrong))
    if problems:
        raise ConfigError(*problems)
    return tuple(choices)


def _sweeps(words: Words) -> tuple[Edit, ...]:
    """Return the sweeps over options. Raises ConfigError if they have too many combinations."""
    sweeps = tuple(edit for edit in words.edits if edit.values)
    if math.prod(len(edit.values) for edit in sweeps) > MAX_COMBINATIONS:
        what = f"more than {MAX_COMBINATIONS} combinations of the values of options"
        raise ConfigError(*(Problem(what, edit.where, "sweep fewer") for edit in sweeps[-1:]))
    return sweeps


def _example(models: Sequence[Model]) -> str:
    path = next((model for model in models if isinstance(model, str)), "./my-phi")
    return f"{{name: kiosk, path: {path}}}"


def _compose_recipe(name: str, words: Words, catalogue: Catalogue) -> tuple[Recipe, list[Problem]]:
    """Return the recipe and what is wrong with it, which it then lacks. Raises ConfigError where
    nothing can be made of it."""
    chain, groups = recipe_chain(name, catalogue), chosen_files(words.groups, catalogue)
    files = tuple(chain.values())
    unmergeable = list(clashes((*files, *groups.values())))
    if unmergeable:
        raise ConfigError(*unmergeable)
    draft = Recipe(name, BuildConfig(model=NO_MODEL, devices={}), files, {}, tuple(groups.values()))
    try:
        data = _hydra_compose(chain, groups)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        raise ConfigError(_composition_problem(error, draft)) from error
    if len(words.models) == 1:
        data["model"] = copy(words.models[0])
        draft.overrides[("model",)] = words.axis_words["model"]
    swept = []
    problems: dict[Problem, None] = {}
    for edits in combinations(words.edits):
        copied = replace(draft, overrides=copy(draft.overrides))
        recipe, wrong = _edit(copied, deepcopy(data), edits)
        swept.append(recipe)
        problems.update(dict.fromkeys(wrong))
    recipe = swept[0] if len(swept) == 1 else replace(swept[0], swept=tuple(swept))
    return recipe, list(problems)


def _edit(draft: Recipe, data: Data, edits: Sequence[Edit]) -> tuple[Recipe, list[Problem]]:
    """Return a recipe of composed data with edits on top, and what is wrong with it, which it then
    lacks. Raises ConfigError where nothing can be made of it."""
    problems = _apply(edits, data, draft.overrides)
    try:
        data = plain(OmegaConf.create(data), resolve=True)
    except (OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        raise ConfigError(*problems, _composition_problem(error, draft)) from error
    config, wrong = validate_recipe(data, draft)
    return replace(draft, config=config), problems + wrong


def _hydra_compose(chain: dict[str, YamlFile], groups: dict[str, YamlFile]) -> Data:
    """Return what Hydra makes of a recipe and the chosen groups, with `${key}` left as it is."""
    store = ConfigStore.instance()
    for safe, data in recipe_copies(chain).items():
        store.store(name=safe, node=data, group="recipes", provider="phibuild")
    for key, file in groups.items():
        store.store(name=_CHOSEN, node=read_copy(file), group=key, provider="phibuild")
    chosen = [f"{key}={_CHOSEN}" for key in groups]
    shipped = str(shipped_root("conf").resolve())
    with initialize_config_dir(shipped, job_name="phibuild", version_base="1.3"):
        config = compose("phibuild", overrides=["recipes@_global_=r0", *chosen])
    return plain(config, resolve=False)


def _apply(edits: Sequence[Edit], data: Data, written: dict[KeyPath, str]) -> list[Problem]:
    """Apply the words to the composed data, note where each went; return what is wrong."""
    problems: list[Problem] = []
    for edit in edits:
        top, dot, _ = edit.key.partition(".")
        fields = tuple(BuildConfig.model_fields)
        if top not in fields and not edit.delete:
            known = fields if dot else {*fields, *AXES}
            problems.append(Problem(f"unknown key {top!r}", edit.where, suggest(top, known)))
            continue
        if top == "model" and isinstance(data.get("model"), str):
            data["model"] = {"path": data["model"]}
        try:
            path = apply_edit(data, edit)
        except ConfigError as error:
            problems += error.problems
            continue
        if not edit.delete:
            written[path] = edit.line
        elif isinstance(path[-1], int):  # the entries of a file's list have other numbers since
            written[path[:-1]] = edit.line
    return problems


def _composition_problem(error: Exception, recipe: Recipe) -> Problem:
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    reason = (str(cause).splitlines() or [type(cause).__name__])[0]
    path = tuple(str(getattr(cause, "full_key", None) or "").split("."))
    return Problem(f"cannot be composed: {reason}", recipe.where(path))
