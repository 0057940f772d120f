"""Downloading large files into the Hub client's cache, so that a cut or killed download goes on
where it stopped: the client itself begins a file anew.

The cache keeps content under `models--<org>--<name>/blobs/<sha256>`, and links to it from
`snapshots/<commit>/`. Here a blob grows in `<sha256>.part` beside its place, under a lock, and is
put there once its digest is the one that the Hub lists.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from phibuild.errors import Problem, SourceError
from phibuild.system.files import file_sha256
from phibuild.system.locks import held

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

AGAIN = "try again: it is downloaded anew"
_SHA256 = re.compile(r"[0-9a-f]{64}")


def download(repo: str, snapshot: Path, file: RepoSibling) -> None:
    """Have one file of a commit, of which the Hub lists the sha256, in the cache's folder
    `snapshot` of that commit. What is there already is left, whatever it holds.

    Raises SourceError if the content is not what the Hub lists, and the Hub client's errors.
    """
    from huggingface_hub import hf_hub_download

    name, sha256 = file.rfilename, file.lfs.sha256 if file.lfs else ""
    if not _SHA256.fullmatch(sha256):
        raise SourceError(Problem(f"the Hub lists no sha256 of {name}", repo))
    blobs = snapshot.parent.parent / "blobs"
    blobs.mkdir(exist_ok=True)
    if not (snapshot / name).exists() and not (blobs / sha256).exists():
        locks = snapshot.parents[2] / ".locks" / snapshot.parents[1].name
        locks.mkdir(parents=True, exist_ok=True)
        with held(locks / f"{sha256}.part.lock"):
            if not (blobs / sha256).exists():  # another phibuild may have been faster
                _grow(repo, snapshot.name, file, blobs / f"{sha256}.part")
                os.replace(blobs / f"{sha256}.part", blobs / sha256)
    hf_hub_download(repo, name, revision=snapshot.name)  # it links what is there


def _grow(repo: str, commit: str, file: RepoSibling, part: Path) -> None:
    """Download what a file lacks yet, and check the whole."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # lazy

    assert file.lfs is not None  # its digest is known
    if part.exists() and part.stat().st_size > file.lfs.size:
        part.unlink()
    with part.open("ab") as stream:
        http_get(
            hf_hub_url(repo, file.rfilename, revision=commit),
            stream,
            resume_size=stream.tell(),
            headers=build_hf_headers(),
            expected_size=file.lfs.size,
            displayed_filename=file.rfilename,
        )
    if file_sha256(part) != file.lfs.sha256:
        part.unlink()
        raise content_error([file.rfilename], repo)


def content_error(names: list[str], repo: str) -> SourceError:
    """Return the error of files that are not what the Hub lists, and have been removed."""
    text = f"content differs from the Hub's, removed from the cache: {', '.join(names)}"
    return SourceError(Problem(text, repo, AGAIN))
