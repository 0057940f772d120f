"""A model reference to a checkpoint: a catalogue name, a folder, or org/name@revision."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Literal

from phibuild.catalogue import DATA, Catalogue, ModelEntry, locate
from phibuild.checkpoint import Checkpoint, catalogue_checkpoint, load_checkpoint
from phibuild.errors import Problem, SourceError, suggest
from phibuild.yamlfile import YamlFile

Fetch = Literal["never", "missing", "always"]
"""When a Hub model is downloaded: unless it is in the Hub's cache, or always, so that a branch is
where the Hub has it now; what is in the cache already is not downloaded again."""
_HUB = re.compile(r"^([\w.-]+/[\w.-]+?)(?:@([\w./-]+))?$")


def model_name(reference: str) -> str:
    """Return the name that stands in cell ids: the catalogue's, the folder's, the repository's."""
    tail = reference.split("@")[0].rstrip("/").rsplit("/", 1)[-1]
    if tail in ("", ".", ".."):
        tail = Path(reference).expanduser().resolve().name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", tail).strip("-.") or "model"


def resolve_model(
    reference: str, catalogue: Catalogue, *, where: str | None = None, fetch: Fetch = "never"
) -> Checkpoint:
    """Return the checkpoint that a reference means.

    `fetch` says when a Hub model is downloaded. One that is not there has its facts from the
    catalogue, or from its config.json on the Hub. Raises SourceError.
    """
    if not reference.strip():
        raise SourceError(
            Problem("model needs a name", where, "a model name, ./folder, or org/name@revision")
        )
    if reference in catalogue.model_files:
        return _from_catalogue(reference, catalogue, fetch=fetch)
    try:
        folder = Path(reference).expanduser()
        is_folder = reference.startswith((".", "/", "~")) or folder.is_dir()
        if is_folder:
            return load_checkpoint(folder.resolve(), model_name(reference), reference, where)
    except (OSError, RuntimeError, ValueError) as error:
        # A name too long, a folder that may not be read, ~nobody.
        reason = getattr(error, "strerror", None) or error
        raise SourceError(
            Problem(f"model {reference!r} cannot be read: {reason}", where)
        ) from error
    hub = _HUB.match(reference)
    if not hub:
        raise SourceError(
            Problem(
                f"unknown model {reference!r}",
                where,
                f"{suggest(reference, catalogue.model_files)}; or ./folder, or org/name@revision",
            )
        )
    return _from_hub(model_name(reference), reference, hub[1], hub[2], fetch=fetch)


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
    from phibuild import hub

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
