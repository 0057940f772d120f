"""Checkpoints of the Hugging Face Hub: only the files that a build reads, never code or pickles."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from phibuild.checkpoints.config_file import check_architecture
from phibuild.checkpoints.hub_download import AGAIN, content_error, download
from phibuild.checkpoints.hub_errors import UNREACHABLE, explained
from phibuild.checkpoints.hub_files import small_files
from phibuild.errors import Problem, SourceError
from phibuild.worker.json_values import JsonDict, parse_object
from phibuild.worker.safetensors import INDEX, SINGLE, shard_paths

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

# The client reads these when it is imported: errors are told here, and a log needs no bars.
os.environ.setdefault("HF_HUB_VERBOSITY", "error")
if not sys.stderr.isatty():
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

_NEEDED = ("config.json", "tokenizer.json", "tokenizer_config.json")
_TIMEOUT = 10.0  # seconds; the client would wait for ever


def cached(repo: str, revision: str | None) -> Path | None:
    """Return the folder of a model that was fetched before with all that it takes to build it, None
    if there is none. Another program may have left small files out: `hub_files.lacking`."""
    if not (cache_folder() / f"models--{repo.replace('/', '--')}").is_dir():
        return None  # the Hub client, which takes half a second to import, would say the same
    try:
        config = _cached_config(repo, revision)
    except ValueError:
        return None
    if config is None:
        return None
    folder = config.parent
    # Other programs fetch weights, or a tokenizer, alone. What is complete is said here: to
    # snapshot_download of huggingface_hub 2 it is all files of the repository, or nothing.
    complete = all((folder / name).exists() for name in _NEEDED) and _weights_complete(folder)
    return folder if complete else None


def _cached_config(repo: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repo, "config.json", revision=revision)
    return Path(path) if isinstance(path, str) else None  # it may also know that there is none


def cache_folder() -> Path:
    """Return where the Hub client keeps what it fetches, as it says itself: it has its own rules
    for HF_HUB_CACHE, HUGGINGFACE_HUB_CACHE, HF_HOME, XDG_CACHE_HOME and variables in them."""
    from huggingface_hub import constants  # 20 ms; the client itself takes half a second

    return Path(constants.HF_HUB_CACHE)


def fetch(repo: str, revision: str | None) -> Path:
    """Download the files that a build reads; an interrupted download goes on where it stopped. A
    branch is asked for anew; what is in the cache is not downloaded again.

    Of a model that cannot be built, config.json alone is downloaded. Content is compared with the
    digests that the Hub lists, since its client compares sizes only; what differs is removed.
    """
    from huggingface_hub import snapshot_download

    path = _config_file(repo, revision)
    check_architecture(_read_config(path, repo), lambda key: f"config.json of {repo}")
    folder = path.parent
    files = _listed(repo, folder.name, revision)
    weights = _weight_names(repo, folder.name, files)
    large = [files[name] for name in weights if name in files and files[name].lfs]
    wanted = [*small_files(files), *(name for name in weights if name in files)]
    with explained(repo, revision):
        # Weights come last: with them a folder counts as complete.
        names = [file.rfilename for file in large]
        snapshot_download(repo, revision=folder.name, allow_patterns=wanted, ignore_patterns=names)
        for file in large:
            download(repo, folder, file)
    _remove_damaged(folder, {name: files[name] for name in wanted}, repo)
    return folder


def complete(repo: str, folder: Path) -> str | None:
    """Download the small files that a snapshot lacks, those of its own commit, and have the client
    keep the list of the commit's files. Return why that could not be done, None if it was.

    Raises SourceError for content that is not what the Hub lists; it is removed.
    """
    from huggingface_hub import snapshot_download

    commit = folder.name
    try:
        files = _listed(repo, commit, commit)
        wanted = [name for name in small_files(files) if not (folder / name).exists()]
        with explained(repo, commit):
            snapshot_download(repo, revision=commit, allow_patterns=["config.json", *wanted])
    except SourceError as error:
        what = error.problems[0].what
        return UNREACHABLE if what.startswith(UNREACHABLE) else what
    if not all((folder / name).exists() for name in wanted):
        return "the Hub did not give them"  # the client goes on with what is there
    _remove_damaged(folder, {name: files[name] for name in wanted}, repo)
    return None


def _listed(repo: str, commit: str, revision: str | None) -> dict[str, RepoSibling]:
    """Return the files of a commit by name, as the Hub lists them."""
    from huggingface_hub import HfApi

    with explained(repo, revision):
        info = HfApi().model_info(repo, revision=commit, files_metadata=True, timeout=_TIMEOUT)
    return {file.rfilename: file for file in info.siblings or ()}


def _weight_names(repo: str, commit: str, files: Collection[str]) -> list[str]:
    """Return the weight files that Transformers would load of a repository with such files, with
    the index if it is by that. Raises SourceError if there are none."""
    from huggingface_hub import hf_hub_download

    if SINGLE in files:
        return [SINGLE]
    if INDEX in files:
        with explained(repo, commit):
            folder = Path(hf_hub_download(repo, INDEX, revision=commit)).parent
        try:
            return [*(path.name for path in shard_paths(folder)), INDEX]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise SourceError(Problem("its index of weights is damaged", repo, AGAIN)) from error
    pickles = fnmatch.filter(files, "*.bin")
    remedy = "pickled weights can run code when loaded and are not read" if pickles else None
    raise SourceError(Problem(f"the repository has neither {SINGLE} nor {INDEX}", repo, remedy))


def _remove_damaged(folder: Path, files: Mapping[str, RepoSibling], repo: str) -> None:
    """Take files that are not what the Hub lists out of the cache; raise SourceError for them."""
    present = {name: folder / name for name in sorted(files) if (folder / name).exists()}
    damaged = [path for name, path in present.items() if not _is_intact(path, files[name])]
    if not damaged:
        return
    for path in damaged:
        path.resolve().unlink(missing_ok=True)  # the link to it stays, and counts as missing
    # Without its config.json the folder counts as not there.
    (folder / "config.json").unlink(missing_ok=True)
    raise content_error([path.name for path in damaged], repo)


def _is_intact(path: Path, listed: RepoSibling) -> bool:
    """Compare a file with its sha256, or with its git blob's sha1 where git itself holds it."""
    with path.open("rb") as file:
        if listed.lfs:
            return hashlib.file_digest(file, "sha256").hexdigest() == listed.lfs.sha256
        data = file.read()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() == listed.blob_id


def config(repo: str, revision: str | None) -> JsonDict:
    """Return the config.json of a model on the Hub."""
    return _read_config(_config_file(repo, revision), repo)


def _config_file(repo: str, revision: str | None) -> Path:
    """Download config.json alone and return its path, in the folder of the revision's commit."""
    from huggingface_hub import HfApi, hf_hub_download

    with explained(repo, revision):
        if _cached_config(repo, revision) is None:
            # This fails at once where the download would try for 25 seconds.
            HfApi().model_info(repo, revision=revision, timeout=_TIMEOUT)
        return Path(hf_hub_download(repo, "config.json", revision=revision))


def _read_config(path: Path, repo: str) -> JsonDict:
    try:
        return parse_object(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        path.resolve().unlink(missing_ok=True)
        raise SourceError(Problem("its config.json is damaged", repo, AGAIN)) from error


def _weights_complete(folder: Path) -> bool:
    try:
        paths = shard_paths(folder)
    except (ValueError, KeyError, TypeError, AttributeError):
        return False
    return bool(paths) and all(path.exists() for path in paths)
