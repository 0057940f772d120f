"""Content keys: the digest of everything that decides an artifact's or a measurement's content."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from phibuild import __version__
from phibuild.calibration import CHUNK_TOKENS
from phibuild.checkpoint import Checkpoint, combine_digests, digest_files
from phibuild.schema import Calibration, Variant
from phibuild.steps import REFERENCE_BACKEND
from phibuild.store import Store, content_key
from phibuild.toolchains import BACKENDS, toolchain

_PACKAGE = Path(__file__).resolve().parent
CHANGED = "the checkpoint was changed while it was read: build again when it stays as it is"
_SHARED_CODE = (
    "worker.py",
    "architecture.py",
    "disk.py",
    "disk_buffers.py",
    "safetensors_io.py",
    "readme.py",
    "backends/companions.py",
)
_JUDGE_CODE = ("evaluate/judge.py", "evaluate/metrics.py", "worker.py")


def source_digest(checkpoint: Checkpoint, store: Store, *, read_weights: bool) -> str | None:
    """Return the digest of a checkpoint's files; None if it is not known and not to be read."""
    if checkpoint.folder is None:
        return None
    digests: dict[str, str] = {}
    for path in digest_files(checkpoint.folder):
        digest = store.file_digest(path) if read_weights else store.known_digest(path)
        if digest is None:
            return None
        digests[path.name] = digest
    return combine_digests(digests)


def has_changed(checkpoint: Checkpoint, digest: str, store: Store) -> bool:
    """Return whether a checkpoint's files are no more those that were hashed, by size and time of
    modification: what was read of them meanwhile may be anything."""
    try:
        return source_digest(checkpoint, store, read_weights=False) != digest
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return True  # its index is gone, or is none any more


@cache
def _code_digest(files: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for name in files:
        digest.update(name.encode() + b"\0" + (_PACKAGE / name).read_bytes())
    return digest.hexdigest()


@cache
def builder_digest(name: str) -> str:
    """Return the digest of what builds a backend's artifacts: its code and its locked toolchain."""
    code = sorted(path.relative_to(_PACKAGE).as_posix() for path in (BACKENDS / name).glob("*.py"))
    return content_key(
        {"code": _code_digest((*code, *_SHARED_CODE)), "toolchain": toolchain(name).digest}
    )


def activations_key(source: str, calibration: Calibration) -> str:
    """Return the content key of the original's activations over a text."""
    return content_key(
        {
            "source": source,
            "text": calibration.sha256,
            "tokens": calibration.tokens,
            "chunk_tokens": CHUNK_TOKENS,
            "builder": builder_digest(REFERENCE_BACKEND),
        }
    )


def artifact_key(source: str, variant: Variant, model: str, activations: str | None = None) -> str:
    """Return the content key of an artifact, `activations` being the key of what it is built from
    besides the checkpoint. The model's name is in some formats' metadata."""
    return content_key(
        {
            "source": source,
            "model": model,
            "variant": variant.model_dump(mode="json"),
            "activations": activations,
            "builder": builder_digest(variant.backend),
            "phibuild": __version__,
        }
    )


def measure_key(artifact: str, reference: str) -> str:
    """Return the content key of a measurement: the artifact, the original's logits, the judge."""
    return content_key(
        {"artifact": artifact, "reference": reference, "judge": _code_digest(_JUDGE_CODE)}
    )
