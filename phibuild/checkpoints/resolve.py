"""A model choice to a checkpoint: a catalogue name, a folder, org/name@revision, or an adapter on
one of these."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from phibuild.checkpoints.facts import Checkpoint, catalogue_checkpoint, load_checkpoint
from phibuild.config.catalogue import DATA, Catalogue
from phibuild.config.model_choice import ModelChoice
from phibuild.config.validation import locate
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
    resolver = _Resolver(model_name(choice), catalogue, fetch)
    if choice.path is not None:
        found = resolver.resolve(choice.path, where("path"))
        return replace(found, name=resolver.name)
    assert choice.base is not None
    assert choice.adapter is not None
    folder = _folder(choice.adapter, where("adapter"))
    return resolver.adapted(choice.base, folder, choice.reference, where)


def known_checkpoint(
    choice: ModelChoice, catalogue: Catalogue, *, where: Where = lambda key: None
) -> Checkpoint | None:
    """Return what phibuild knows of a choice by itself: no network, and no model but its own, is
    asked. None for one that it has to look at. Raises SourceError for what is no reference."""
    references = {"path": choice.path, "base": choice.base}
    for key, reference in references.items():
        if reference is not None:
            _check_reference(reference, catalogue, where(key))
    if choice.path is None or choice.path not in catalogue.model_files:
        return None
    resolver = _Resolver(model_name(choice), catalogue, "never")
    found = resolver.known(choice.path)
    return replace(found, name=resolver.name) if found else None


def _check_reference(reference: str, catalogue: Catalogue, where: str | None) -> None:
    """Raise SourceError for what is no name of the catalogue, path or repository of the Hub."""
    if not reference.strip():
        raise SourceError(Problem("model needs a name", where, _FORMS))
    if reference in catalogue.model_files or _is_path(reference) or _HUB.match(reference):
        return
    near = suggest(reference, catalogue.model_files)
    remedy = f"{near}; or ./folder, or org/name@revision"
    raise SourceError(Problem(f"unknown model {reference!r}", where, remedy))


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


@dataclass(frozen=True)
class _Resolver:
    """What references mean, for a choice that is called `name`."""

    name: str
    catalogue: Catalogue
    fetch: Fetch

    def resolve(self, reference: str, where: str | None) -> Checkpoint:
        """Return the checkpoint that a reference means."""
        _check_reference(reference, self.catalogue, where)
        if reference in self.catalogue.model_files:
            return self._from_catalogue(reference)
        if _is_path(reference):
            folder = _folder(reference, where)
            if _is_adapter(folder):
                from phibuild.checkpoints.adapter import base_reference

                base = base_reference(folder, where)
                return self.adapted(base, folder, reference, lambda key: where)
            return load_checkpoint(folder, self.name, reference, where)
        match = _HUB.match(reference)
        assert match
        if snapshot := self._snapshot(match[1], match[2], self.name, reference):
            return snapshot
        return _published(match[1], match[2], self.name, reference)

    def adapted(self, base: str, folder: Path, reference: str, where: Where) -> Checkpoint:
        """Return an adapter's folder on its base, which is no adapter itself."""
        if _is_path(base) and _is_adapter(_folder(base, where("base"))):
            what = f"the base {base!r} is an adapter itself"
            remedy = "merge it into its own base first, and give that as base"
            raise SourceError(Problem(what, where("base"), remedy))
        if not folder.is_dir():
            remedy = "an adapter is a folder that PEFT saved, with adapter_config.json in it"
            raise SourceError(Problem(f"no such folder: {folder}", where("adapter"), remedy))
        from phibuild.checkpoints.adapter import load_adapted

        original = self.resolve(base, where("base"))
        return load_adapted(original, folder, self.name, reference, where("adapter"))

    def known(self, name: str) -> Checkpoint | None:
        """Return what the catalogue itself has of one of its models: phibuild's own, or figures;
        None where it has none."""
        entry = self.catalogue.model(name)
        file = self.catalogue.model_files[name]
        if entry.builtin:
            where = locate([file], ("builtin",))
            found = load_checkpoint(DATA / entry.builtin, name, name, where)
            return replace(found, license=entry.license)
        if not entry.repo:
            remedy = "write repo: org/name of the Hub"
            raise SourceError(Problem("key 'repo' is missing", file.start, remedy))
        if not entry.config:
            return None
        # The catalogue has figures alone: every one of its models is of this architecture.
        config = {"model_type": "phi3", **entry.config}
        return catalogue_checkpoint(
            name, name, config, entry.tokenizer_bytes, entry.license,
            lambda key: locate([file], ("config", key)) or file.shown,
        )  # fmt: skip

    def _from_catalogue(self, name: str) -> Checkpoint:
        entry = self.catalogue.model(name)
        if entry.repo and not entry.builtin:
            if snapshot := self._snapshot(entry.repo, entry.revision, name, name):
                return replace(snapshot, license=entry.license)
            if not entry.config:
                size, license = entry.tokenizer_bytes, entry.license
                return _published(entry.repo, entry.revision, name, name, size, license)
        found = self.known(name)
        assert found
        return found

    def _snapshot(
        self, repo: str, revision: str | None, name: str, reference: str
    ) -> Checkpoint | None:
        """Return a Hub model that is here, or is fetched; None for one that is not to be. What
        another program left out of it is fetched too, or said to be missing."""
        from phibuild.checkpoints import hub

        folder = hub.cached(repo, revision) if self.fetch != "always" else None
        missing, notes = self._left_out(repo, folder) if folder else ((), ())
        if folder is None and self.fetch != "never":
            folder = hub.fetch(repo, revision)
        if folder is None:
            return None
        commit = folder.name  # so are the folders of the Hub's cache called
        checkpoint = load_checkpoint(folder, name, reference)
        return replace(
            checkpoint,
            commit=commit,
            pinned=revision == commit,
            lacking=missing,
            notes=(*checkpoint.notes, *notes),
        )

    def _left_out(self, repo: str, folder: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the files that a snapshot may lack, after the Hub was asked for them if it is to
        be, and what is to be said of that."""
        from phibuild.checkpoints import hub
        from phibuild.checkpoints.hub_files import lacking

        missing = lacking(folder)
        if not missing:
            return (), ()
        so = "; a build asks the Hub for them"
        if self.fetch != "never":
            reason, missing = hub.complete(repo, folder), lacking(folder)
            if reason is None or not missing:
                return (), ()
            so = f", and so in the artifacts: {reason}"
        return missing, (f"{', '.join(missing)} may be missing in the Hub's cache{so}",)


def _published(
    repo: str,
    revision: str | None,
    name: str,
    reference: str,
    tokenizer_bytes: int = 4_000_000,
    license: str = "see the model card",
) -> Checkpoint:
    """Return the facts of a Hub model that is not here, by its config.json on the Hub."""
    from phibuild.checkpoints import hub

    return catalogue_checkpoint(
        name,
        reference,
        hub.config(repo, revision),
        tokenizer_bytes,
        license,
        lambda key: f"config.json of {repo}",
    )
