"""A recipe: its files, checked as data; what it is once composed; what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import Field, ValidationError

from phibuild.config.catalogue import Catalogue
from phibuild.config.edits import COMMAND_LINE, is_names, is_precisions, is_variants, kind_of
from phibuild.config.executors import ExecutorSettings, SlurmSettings
from phibuild.config.groups import GROUPS
from phibuild.config.model_choice import ModelChoice
from phibuild.config.validation import locate, validation_problems
from phibuild.config.yamlfile import Data, KeyPath, YamlFile
from phibuild.errors import ConfigError, Problem, suggest
from phibuild.schema import Evaluation, Frozen, Gates

_MAPPINGS = ("devices", "backends", "gates", *GROUPS)
# Of a recipe whose model is wrong, which is said.
NO_MODEL = ModelChoice(path="")
NO_DEVICES = "the recipe names no devices"
_EXAMPLE = "add: devices: {raspberry_pi_5: {llamacpp: [int4]}}"


class BuildConfig(Frozen):
    """One recipe, composed. A list of precisions that could not be made a mapping stays, to be
    refused."""

    description: str = ""
    """What the recipe is for, in a few words: `phibuild list recipes` shows it."""
    model: ModelChoice
    """The checkpoint: a name of `phibuild list models`, a folder, org/name@revision, or a
    mapping."""
    allow_nonfinite: bool = False
    """true: build from weights with NaN or infinity."""
    devices: dict[str, dict[str, object]]
    """device -> backend -> precision -> options, or a list of them, one a variant."""
    backends: dict[str, dict[str, object]] = Field(default_factory=dict)
    """Options for the whole recipe: backend -> precision -> options."""
    gates: Gates = Gates()
    """Limits that every artifact must keep; exit code 3 where one is broken."""
    evaluation: Evaluation = Field(default_factory=Evaluation)
    """How artifacts are judged; what is not said here is as conf/evaluation/standard.yaml has
    it."""
    executor: ExecutorSettings | SlurmSettings = Field(default_factory=ExecutorSettings)
    """How steps run; what is not said here is as conf/executor/local.yaml has it."""


class _LocalConfig(BuildConfig):
    executor: ExecutorSettings = Field(default_factory=ExecutorSettings)


class _SlurmConfig(BuildConfig):
    executor: SlurmSettings


_KINDS: dict[str, type[BuildConfig]] = {"local": _LocalConfig, "slurm": _SlurmConfig}


@dataclass(frozen=True)
class Recipe:
    """A composed recipe, the files it came from (itself first), the overrides on top, and
    the files of conf/ that are chosen by name (evaluation, executor). `swept` is it with each
    combination of the values of a sweep over options, itself the first; empty without one."""

    name: str
    config: BuildConfig
    files: tuple[YamlFile, ...]
    overrides: dict[KeyPath, str]
    group_files: tuple[YamlFile, ...] = ()
    swept: tuple[Recipe, ...] = ()

    @property
    def combinations(self) -> tuple[Recipe, ...]:
        """The recipe once for each combination of what is swept."""
        return self.swept or (self,)

    def where(self, path: KeyPath) -> str | None:
        """Return where `path` of the configuration was written: a command-line word, file:line."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.overrides:
                return f"{COMMAND_LINE}: {self.overrides[path[:length]]}"
        files = (*self.files, *self.group_files)
        if not any(file.find(path)[0] == len(path) for file in files):
            for key, word in self.overrides.items():
                if key[: len(path)] == path:
                    return f"{COMMAND_LINE}: {word}"
        return locate(files, path) or self.files[0].start


def recipe_chain(name: str, catalogue: Catalogue) -> dict[str, YamlFile]:
    """Return the recipe's file and those of the recipes in its defaults list, by name, checked as
    data."""
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
            what = "defaults must be a list of recipes"
            place = locate([file], ("defaults",))
            problems.append(Problem(what, place, "for example [mobile, _self_]"))
        seen: set[str] = set()
        for entry, where in entries or ():
            if entry is None:
                what = "an entry of the defaults list is the name of a recipe"
                remedy = "set other things by key: evaluation: {windows: 8}"
                problems.append(Problem(what, where, remedy))
            elif entry in seen:
                problems.append(Problem(f"{entry!r} stands twice in the defaults list", where))
            elif entry in (current, *above):
                problems.append(Problem(f"recipe {entry!r} contains itself", where))
            elif entry != "_self_" and entry not in catalogue.recipe_files:
                what = f"unknown recipe {entry!r} in the defaults list"
                problems.append(Problem(what, where, suggest(entry, catalogue.recipe_files)))
            elif entry != "_self_" and entry in found:
                what, remedy = f"recipe {entry!r} comes twice", "remove it from one list"
                problems.append(Problem(what, where, remedy))
            elif entry != "_self_":
                visit(entry, (*above, current))
            seen.add(entry or "")

    visit(name, ())
    if problems:
        raise ConfigError(*problems)
    return found


def clashes(files: Sequence[YamlFile]) -> Iterator[Problem]:
    """Yield where one file has a list and another, or the schema, a mapping: these do not merge,
    but for lists of precisions, which are mappings, and models and lists of variants, of which the
    last counts."""
    kinds: dict[KeyPath, tuple[str, str]] = {(key,): ("a mapping", "") for key in _MAPPINGS}

    def visit(value: object, path: KeyPath, file: YamlFile) -> Iterator[Problem]:
        if is_precisions(path) and is_names(value):
            value = {}
        kind = kind_of(value)
        if kind is None or path == ("model",) or is_variants(path):
            return
        where = locate([file], path) or file.shown
        known, other = kinds.setdefault(path, (kind, where))
        if kind != known:
            as_in = f" as in {other}" if other else ""
            name = ".".join(str(part) for part in path)
            yield Problem(f"{name}: must be {known}{as_in}, not {kind}", where)
        elif isinstance(value, dict):
            for key, child in value.items():
                yield from visit(child, (*path, key), file)

    for file in reversed(files):
        yield from visit(file.data(), file.prefix, file)


def validate_recipe(data: Data, draft: Recipe) -> tuple[BuildConfig, list[Problem]]:
    """Return the configuration without what is wrong with it, and that."""
    problems: list[Problem] = []
    for file in draft.files:
        if file.find(("hydra",))[0]:
            where = locate([file], ("hydra",))
            remedy = "a recipe has no settings of Hydra"
            problems.append(Problem("unknown key 'hydra'", where, remedy))
        if file.find(("executor", "setup"))[0] == 2:
            where = locate([file], ("executor", "setup"))
            what = "executor.setup in a recipe is refused"
            remedy = "recipes are data: conf/executor/NAME.yaml may hold it"
            problems.append(Problem(what, where, remedy))
    if not data.get("devices"):
        problems.append(Problem(NO_DEVICES, draft.where(("devices",)), _EXAMPLE))
        data["devices"] = {}
    kind = _KINDS[_executor_kind(data, draft, problems)]
    try:
        config = kind.model_validate(data)
        return config, problems + _text_problems(config, draft)
    except ValidationError as error:
        problems += validation_problems(error, kind, draft.where)
        for detail in error.errors(include_url=False, include_context=False):
            _prune(data, detail["loc"])
    try:
        config = kind.model_validate({"model": NO_MODEL, "devices": {}, **data})
        return config, problems + _text_problems(config, draft)
    except ValidationError as error:
        raise ConfigError(*problems) from error


def _executor_kind(data: Data, draft: Recipe, problems: list[Problem]) -> str:
    """Return the kind of executor that the chosen file of conf/executor is of. Nothing else may
    choose it: the keys of that file would not fit."""
    chosen = next((f.data() for f in draft.group_files if f.prefix == ("executor",)), {})
    written = chosen.get("kind", "local")
    kind = next((known for known in _KINDS if known == written), None)
    where = draft.where(("executor", "kind"))
    if kind is None:
        what = f"executor.kind: unknown kind {written!r}"
        problems.append(Problem(what, where, f"known: {', '.join(_KINDS)}"))
        data["executor"] = {}
        return "local"
    match data.get("executor"):
        case {"kind": other} if other != kind:
            problems.append(Problem("executor.kind cannot be set", where, "choose executor=NAME"))
            data["executor"]["kind"] = kind
    return kind


def _prune(data: object, path: KeyPath) -> None:
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
