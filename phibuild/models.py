"""A model reference to a checkpoint: a catalogue name, a folder, or org/name@revision."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from phibuild.catalogue import DATA, Catalogue, ModelEntry
from phibuild.checkpoint import Checkpoint, catalogue_checkpoint, load_checkpoint
from phibuild.errors import Problem, SourceError, suggest

_HUB = re.compile(r"^([\w.-]+/[\w.-]+?)(?:@([\w./-]+))?$")


def model_name(reference: str) -> str:
    """Return the name that stands in cell ids: the catalogue's, the folder's, the repository's."""
    tail = reference.split("@")[0].rstrip("/").rsplit("/", 1)[-1]
    if tail in ("", ".", ".."):
        tail = Path(reference).expanduser().resolve().name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", tail).strip("-.") or "model"


def resolve_model(
    reference: str, catalogue: Catalogue, *, where: str | None = None, fetch: bool = False
) -> Checkpoint:
    """Return the checkpoint that a reference means.

    With `fetch`, a Hub model is downloaded unless it is in the Hub's cache; without, its facts
    come from the cache, from the catalogue, or from its config.json on the Hub. Raises SourceError.
    """
    if reference in catalogue.model_files:
        return _from_catalogue(catalogue.model(reference), fetch=fetch, where=where)
    folder = Path(reference).expanduser()
    if reference.startswith((".", "/", "~")) or folder.is_dir():
        return load_checkpoint(folder.resolve(), model_name(reference), reference)
    hub = _HUB.match(reference)
    if not hub:
        raise SourceError(
            Problem(
                f"unknown model {reference!r}",
                where,
                f"{suggest(reference, catalogue.model_files)}; or ./folder, or org/name@revision",
            )
        )
    return _from_hub(model_name(reference), reference, hub[1], hub[2], None, fetch=fetch)


def _from_catalogue(entry: ModelEntry, *, fetch: bool, where: str | None) -> Checkpoint:
    if entry.builtin:
        checkpoint = load_checkpoint(DATA / entry.builtin, entry.name, entry.name)
        return replace(checkpoint, license=entry.license)
    if not entry.repo:
        raise SourceError(
            Problem(f"model {entry.name!r} names neither 'repo' nor 'builtin'", where)
        )
    return _from_hub(entry.name, entry.name, entry.repo, entry.revision, entry, fetch=fetch)


def _from_hub(
    name: str,
    reference: str,
    repo: str,
    revision: str | None,
    entry: ModelEntry | None,
    *,
    fetch: bool,
) -> Checkpoint:
    from phibuild import hub

    folder = hub.cached(repo, revision)
    if folder is None and fetch:
        folder = hub.fetch(repo, revision)
    if folder is not None:
        checkpoint = load_checkpoint(folder, name, reference)
        return replace(checkpoint, license=entry.license) if entry else checkpoint
    config, tokenizer_bytes = (
        (entry.config, entry.tokenizer_bytes)
        if entry and entry.config
        else (hub.config(repo, revision), 4_000_000)
    )
    license = entry.license if entry else "see the model card"
    return catalogue_checkpoint(name, reference, config, tokenizer_bytes, license)
