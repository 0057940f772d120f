"""What list, doctor, verify, store, runs and toolchain print with `--json`: for other programs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, JsonValue, RootModel

from phibuild.report.inventory import RunStatus
from phibuild.schema import Accelerator, DeviceClass, Document, Options, Precision

# -- list


class RecipeRow(Document):
    recipe: str
    description: str | None
    file: str
    problem: str | None
    """What is wrong with the file."""


class DeviceRow(Document):
    device: str
    device_class: Annotated[DeviceClass, Field(serialization_alias="class")]
    memory: int
    """Bytes."""
    memory_written: str
    """As the device's file has it ("8 GiB")."""
    budget: int
    """Bytes that a model, its KV cache and its buffers may take."""
    budget_written: str
    """As the device's file has it."""
    context: int
    """Tokens that it is planned for."""
    accelerators: list[Accelerator]
    title: str


class BackendRow(Document):
    backend: str
    format: str | None
    """The file format. Here and below: null where the backend cannot be used."""
    title: Annotated[str | None, Field(serialization_alias="for")]
    """What its artifacts are for."""
    options: list[str] | None
    problem: str | None
    """What is wrong with the package that brings it."""


class ModelRow(Document):
    model: str
    title: str
    repo: str | None
    """On the Hub; null: it comes with phibuild."""
    revision: str | None
    licence: str
    config: dict[str, JsonValue] | None
    """Figures of its published config.json."""


class PrecisionRow(Document):
    """A precision and, by backend, its default options; null: the backend has no such precision."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Options | None]

    precision: Precision


class RecipeList(RootModel[list[RecipeRow]]):
    """What `list recipes --json` prints."""


class DeviceList(RootModel[list[DeviceRow]]):
    """What `list devices --json` prints."""


class BackendList(RootModel[list[BackendRow]]):
    """What `list backends --json` prints."""


class ModelList(RootModel[list[ModelRow]]):
    """What `list models --json` prints."""


class PrecisionList(RootModel[list[PrecisionRow]]):
    """What `list precisions --json` prints."""


# -- check


class CheckedFile(Document):
    file: str
    kind: Literal["recipe", "device", "model", "evaluation", "executor", "backend"]


class FoundProblem(Document):
    file: str | None
    """Here and below: null where it lies in no file, or nobody knows where."""
    line: int | None
    """From 1."""
    column: int | None
    """From 1, in characters."""
    where: str | None
    """The place as all other messages have it: file:line."""
    what: str
    remedy: str | None
    """What to do."""


class CheckAnswer(Document):
    files: list[CheckedFile]
    problems: list[FoundProblem]
    """By file, line and column; none: exit code 0."""


# -- show


ShowKind = Literal["device", "recipe", "backend", "model"]


class OtherValue(Document):
    value: JsonValue
    where: str | None


class ShownKey(Document):
    key: str
    """Its place in the file, with dots; of a backend PRECISION.OPTION."""
    values: str
    """What it may be, in words."""
    required: bool
    """Whether the file must have it."""
    default: JsonValue
    """What it is where nobody says it."""
    meaning: str
    value: JsonValue
    """What it is here."""
    where: str | None
    """Where that was written: file:line; null: nowhere."""
    over: list[OtherValue]
    """What is said elsewhere and does not count, the nearest first."""


class ShowAnswer(Document):
    kind: ShowKind
    name: str
    file: str | None
    """Null: a backend without a file of defaults."""
    origin: str
    """Whose the file is, in words."""
    hides: list[str]
    """Files of the same name that it is in place of."""
    over: list[str]
    """Recipes that it is merged over."""
    text: str | None
    keys: list[ShownKey]
    """Of a recipe with the options that hold at each of its cells."""


# -- doctor, verify, store, runs, toolchain


class Check(Document):
    """Something that a build needs."""

    check: str
    state: Literal["ok", "missing", "bad"]
    """bad: it stands in the way of a build."""
    found: str
    remedy: str
    """What to do; empty: nothing."""


class DoctorAnswer(RootModel[list[Check]]):
    """What `doctor --json` prints."""


class VerifyAnswer(RootModel[dict[str, list[str]]]):
    """What `verify --json` prints: by folder or file what is wrong with it, nothing where it is
    whole."""


class StoreEntry(Document):
    """An entry of the store."""

    kind: Literal["artifacts", "references", "measures"]
    key: str
    """The digest of all that decides its content."""
    path: str
    what: str
    """Model, backend and variant of an artifact; else empty."""
    size_bytes: int
    freed_bytes: int
    """What removing it gives back: files that runs hold links to stay."""
    used: float
    """When it was made or a run last named it, seconds since 1970."""
    runs: list[str]
    """Folders of the runs that name it."""
    state: Literal["complete", "damaged", "in use"]


class StoreList(RootModel[list[StoreEntry]]):
    """What `store list --json` prints, least recently used first."""


class FolderUse(Document):
    bytes: int
    freed_bytes: int
    """What removing it gives back: files that runs hold links to stay."""


class StoreUse(RootModel[dict[str, FolderUse]]):
    """What `store du --json` prints: the store's folders."""


class StoreRemoval(Document):
    """What `store gc --json` prints."""

    removed: list[StoreEntry]
    others: dict[str, int]
    """Number of other things that were removed, by what they are."""
    left_bytes: int
    """What the store holds afterwards."""
    dry_run: bool
    """Nothing was removed: this is what would be."""


class RunRow(Document):
    """A run of a recipe."""

    recipe: str
    folder: str
    started: float
    """By its name, seconds since 1970."""
    confirmed: float | None
    """When a build last found nothing new, seconds since 1970; null: none has."""
    confirmations: int
    """How many builds found nothing new."""
    status: RunStatus
    """running: it is being written; killed: its build ended without a report; damaged: its report
    cannot be read."""
    cells: int | None
    """null: there is no report that can be read."""
    alone_bytes: int
    """Of the files that nothing else links to: what removing it frees; of one that `prune` removed,
    what that freed."""
    command: str | None
    """null: there is no report that can be read."""
    latest: bool


class RunList(RootModel[list[RunRow]]):
    """What `runs list --json` prints, newest first."""


class RunRemoval(Document):
    """What `runs prune --json` prints."""

    removed: list[RunRow]
    """In the order of their removal, the oldest first."""
    freed_bytes: int
    """What removing them all frees."""
    left: int
    """Number of runs that stay."""
    dry_run: bool
    """Nothing was removed: this is what would be."""


class ToolchainRow(Document):
    backend: str
    state: str
    """complete, or what is wrong with it."""
    folder: str
    size_bytes: int | None
    """null: not installed."""


class ToolchainList(RootModel[list[ToolchainRow]]):
    """What `toolchain list --json` prints."""
