"""A model choice to a checkpoint: a catalogue name, a folder, org/name@revision, or an adapter on
one of these."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

from phibuild.checkpoints.facts import Checkpoint, catalogue_checkpoint, load_checkpoint
from phibuild.config.catalogue import DATA, Catalogue, ModelEntry, locate
from phibuild.config.model_choice import ModelChoice
from phibuild.config.yamlfile import YamlFile
from phibuild.errors import Problem, SourceError, suggest
from phibuild.system.places import as_path, is_folder

Fetch = Literal["never", "missing", "always"]
"""When a Hub model is downloaded: unless it is in the Hub's cache, or always, so that a branch is
where the Hub has it now; what is in the cache already is not downloaded again."""
Where = Callable[[str], str | None]
"""(key of the choice) -> where it was written."""
_HUB = re.compile(r"^([\w.-]+/[\w.-]+?)(?:@([\w./-]+))?$")
_FORMS = "a model name, ./folder, or org/name@revision"
_MOST_NAME = 120  # bytes; a cell's id names folders, and has a device and more besides


def model_name(choice: ModelChoice) -> str:
    """Return the name that stands in cell ids: the user's, else the catalogue's, the folder's, the
    repository's (also where the folder is a snapshot of it in the Hub's cache)."""
    if choice.name is not None:
        return _clean(choice.name)
    reference = choice.path if choice.path is not None else choice.adapter or ""
    if not _is_path(reference):
        return _clean(reference.split("@")[0].rstrip("/").rsplit("/", 1)[-1])
    try:
        path = as_path(reference).absolute()
        if path.name in ("", ".", ".."):
            path = path.resolve()
    except (OSError, RuntimeError, ValueError):
        return _clean(reference.rstrip("/").rsplit("/", 1)[-1])
    repository = path.parent.parent.name
    if path.parent.name == "snapshots" and repository.startswith("models--"):
        return _clean(repository.split("--", 2)[-1])
    return _clean(path.name)


def _clean(name: str) -> str:
    """Return a name as it can stand in ids and folders: letters of any script with their marks,
    digits, `.`, `_` and `-`; what is between them becomes `-`."""
    letters = [
        letter if letter in "._-" or category[0] in "LM" or category == "Nd" else " "
        for letter in unicodedata.normalize("NFC", name)
        if (category := unicodedata.category(letter))
    ]
    text = "-".join("".join(letters).split())
    return text.encode()[:_MOST_NAME].decode(errors="ignore").strip("-.") or "model"


def _is_path(reference: str) -> bool:
    return reference.startswith((".", "/", "~")) or is_folder(reference)


def resolve_model(
    choice: ModelChoice,
    catalogue: Catalogue,
    *,
    where: Where = lambda key: None,
    fetch: Fetch = "never",
) -> Checkpoint:
    """Return the checkpoint that a choice means.

    `where` says where a key of the choice was written, `fetch` when a Hub model is downloaded. One
    that is not there has its facts from the catalogue, or from its config.json on the Hub. Raises
    SourceError.
    """
    name = model_name(choice)
    if choice.path is not None:
        found = _resolve(choice.path, name, catalogue, where("path"), fetch)
        return replace(found, name=name)
    assert choice.base is not None
    assert choice.adapter is not None
    folder = _folder(choice.adapter, where("adapter"))
    return _adapted(choice.base, folder, name, choice.reference, catalogue, where, fetch)


def _adapted(
    base: str,
    folder: Path,
    name: str,
    reference: str,
    catalogue: Catalogue,
    where: Where,
    fetch: Fetch,
) -> Checkpoint:
    """Return an adapter's folder on its base, which is no adapter itself."""
    if _is_path(base) and _is_adapter(_folder(base, where("base"))):
        what = f"the base {base!r} is an adapter itself"
        remedy = "merge it into its own base first, and give that as base"
        raise SourceError(Problem(what, where("base"), remedy))
    if not folder.is_dir():
        remedy = "an adapter is a folder that PEFT saved, with adapter_config.json in it"
        raise SourceError(Problem(f"no such folder: {folder}", where("adapter"), remedy))
    from phibuild.checkpoints.adapter import load_adapted

    original = _resolve(base, name, catalogue, where("base"), fetch)
    return load_adapted(original, folder, name, reference, where("adapter"))


def _is_adapter(folder: Path) -> bool:
    """Say whether a folder holds a PEFT adapter alone."""
    return (folder / "adapter_config.json").is_file() and not (folder / "config.json").exists()


def _folder(reference: str, where: str | None) -> Path:
    """Return the folder that is written as a path; raises SourceError if it cannot be read."""
    try:
        folder = as_path(reference).resolve()
        folder.is_dir()
    except (OSError, RuntimeError, ValueError) as error:
        # A name too long, a folder that may not be read, ~nobody.
        reason = getattr(error, "strerror", None) or error
        raise SourceError(
            Problem(f"model {reference!r} cannot be read: {reason}", where)
        ) from error
    return folder


def _resolve(
    reference: str, name: str, catalogue: Catalogue, where: str | None, fetch: Fetch
) -> Checkpoint:
    """Return the checkpoint that a reference means."""
    if not reference.strip():
        raise SourceError(Problem("model needs a name", where, _FORMS))
    if reference in catalogue.model_files:
        return _from_catalogue(reference, catalogue, fetch=fetch)
    if _is_path(reference):
        folder = _folder(reference, where)
        if _is_adapter(folder):
            from phibuild.checkpoints.adapter import base_reference

            base = base_reference(folder, where)
            return _adapted(base, folder, name, reference, catalogue, lambda key: where, fetch)
        return load_checkpoint(folder, name, reference, where)
    hub = _HUB.match(reference)
    if not hub:
        near = suggest(reference, catalogue.model_files)
        remedy = f"{near}; or ./folder, or org/name@revision"
        raise SourceError(Problem(f"unknown model {reference!r}", where, remedy))
    return _from_hub(name, reference, hub[1], hub[2], fetch=fetch)


def _from_catalogue(name: str, catalogue: Catalogue, *, fetch: Fetch) -> Checkpoint:
    entry = catalogue.model(name)
    file = catalogue.model_files[name]
    if entry.builtin:
        checkpoint = load_checkpoint(DATA / entry.builtin, name, name, locate([file], ("builtin",)))
        return replace(checkpoint, license=entry.license)
    if not entry.repo:
        raise SourceError(
            Problem("key 'repo' is missing", f"{file.shown}:1", "write repo: org/name of the Hub")
        )
    return _from_hub(name, name, entry.repo, entry.revision, entry, file, fetch=fetch)


def _from_hub(
    name: str,
    reference: str,
    repo: str,
    revision: str | None,
    entry: ModelEntry | None = None,
    file: YamlFile | None = None,
    *,
    fetch: Fetch,
) -> Checkpoint:
    from phibuild.checkpoints import hub

    folder = hub.cached(repo, revision) if fetch != "always" else None
    if folder is None and fetch != "never":
        folder = hub.fetch(repo, revision)
    if folder is not None:
        checkpoint = load_checkpoint(folder, name, reference)
        commit = folder.name  # so are the folders of the Hub's cache called
        checkpoint = replace(checkpoint, commit=commit, pinned=revision == commit)
        return replace(checkpoint, license=entry.license) if entry else checkpoint
    if entry and entry.config and file:
        # The catalogue has figures alone: every one of its models is of this architecture.
        return catalogue_checkpoint(
            name,
            reference,
            {"model_type": "phi3", **entry.config},
            entry.tokenizer_bytes,
            entry.license,
            lambda key: locate([file], ("config", key)) or file.shown,
        )
    return catalogue_checkpoint(
        name,
        reference,
        hub.config(repo, revision),
        entry.tokenizer_bytes if entry else 4_000_000,
        entry.license if entry else "see the model card",
        lambda key: f"config.json of {repo}",
    )
