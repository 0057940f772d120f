"""Checkpoints of the Hugging Face Hub: only the files that a build reads, never code or pickles."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from phibuild.backends.companions import GENERATION_FILES, TOKENIZER_FILES
from phibuild.checkpoint import LICENSE_NAMES
from phibuild.errors import Problem, SourceError
from phibuild.safetensors_io import shard_paths

_FILES = [
    "config.json",
    *TOKENIZER_FILES,
    *GENERATION_FILES,
    *LICENSE_NAMES,
    "model*.safetensors",
    "model.safetensors.index.json",
]


def cached(repo: str, revision: str | None) -> Path | None:
    """Return the folder of a model that was fetched completely before, None if there is none."""
    if not (_cache_folder() / f"models--{repo.replace('/', '--')}").is_dir():
        return None  # the Hub client, which takes half a second to import, would say the same
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(
            snapshot_download(repo, revision=revision, allow_patterns=_FILES, local_files_only=True)
        )
    except (LocalEntryNotFoundError, ValueError):
        return None
    return folder if (folder / "config.json").exists() and _weights_complete(folder) else None


def _cache_folder() -> Path:
    """Return the Hub client's cache folder, by its own rules (HF_HUB_CACHE, HF_HOME, XDG)."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    home = os.environ.get("HF_HOME") or Path(cache) / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()


def fetch(repo: str, revision: str | None) -> Path:
    """Download the files that a build reads; an interrupted download goes on where it stopped."""
    from huggingface_hub import snapshot_download

    with _explained(repo, revision):
        return Path(snapshot_download(repo, revision=revision, allow_patterns=_FILES))


def config(repo: str, revision: str | None) -> dict[str, Any]:
    """Return the config.json of a model on the Hub."""
    from huggingface_hub import hf_hub_download

    with _explained(repo, revision):
        path = hf_hub_download(repo, "config.json", revision=revision)
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError:
        data = None
    if not isinstance(data, dict):
        raise SourceError(Problem("config.json on the Hub is damaged", repo))
    return data


def _weights_complete(folder: Path) -> bool:
    try:
        paths = shard_paths(folder)
    except (ValueError, KeyError, TypeError, AttributeError):
        return False
    return bool(paths) and all(path.exists() for path in paths)


@contextmanager
def _explained(repo: str, revision: str | None) -> Iterator[None]:
    """Turn the Hub client's errors into one sentence that says what to do."""
    from huggingface_hub import errors

    name = f"{repo}@{revision}" if revision else repo
    try:
        yield
    except errors.GatedRepoError as error:
        raise SourceError(
            Problem("access to this model is gated", name, "accept its terms, then: hf auth login")
        ) from error
    except errors.RevisionNotFoundError as error:
        raise SourceError(Problem("no such revision on the Hub", name)) from error
    except errors.RepositoryNotFoundError as error:
        raise SourceError(
            Problem(
                "no such model on the Hub, or it is private", name, "check the name; hf auth login"
            )
        ) from error
    except errors.EntryNotFoundError as error:
        offline = isinstance(error, errors.LocalEntryNotFoundError)
        problem = _no_network(name) if offline else Problem(str(error), name)
        raise SourceError(problem) from error
    except (errors.HfHubHTTPError, errors.OfflineModeIsEnabled, OSError) as error:
        raise SourceError(_no_network(name, error)) from error
    except Exception as error:
        # The Hub client lets its HTTP library's own errors through (no common base class).
        if "Connect" in type(error).__name__ or "Timeout" in type(error).__name__:
            raise SourceError(_no_network(name, error)) from error
        raise


def _no_network(name: str, error: Exception | None = None) -> Problem:
    reason = str(error).strip().splitlines()[0][:160] if error and str(error).strip() else ""
    return Problem(
        "the Hub cannot be reached and the model is not in its cache"
        + (f" ({reason})" if reason else ""),
        name,
        "check the network (HF_ENDPOINT, proxy), or give a folder: model=./my-phi",
    )
