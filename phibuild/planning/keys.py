"""Content keys: the digest of everything that decides an artifact's or a measurement's content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from phibuild import __version__
from phibuild.backends.calibration import CHUNK_TOKENS
from phibuild.checkpoints.facts import Checkpoint, combine_digests
from phibuild.errors import Problem
from phibuild.planning.steps import REFERENCE_BACKEND
from phibuild.schema import Calibration, Variant
from phibuild.store.store import Store, content_key
from phibuild.system.plugins import plugin
from phibuild.toolchains.environment import toolchain

_PACKAGE = Path(__file__).resolve().parents[1]
CHANGED = "the checkpoint was changed while it was read: build again when it stays as it is"
_SHARED_CODE = (
    "worker/entry.py",
    "worker/protocol.py",
    "worker/architecture.py",
    "worker/config_keys.py",
    "worker/source_config.py",
    "checkpoints/view.py",
    "worker/direct_io.py",
    "worker/write_buffers.py",
    "worker/safetensors.py",
    "execute/work/readme.py",
    "worker/sentencepiece_model.py",
    "worker/chat.py",
    "worker/companions.py",
    "worker/tokenizer_check.py",
    "worker/tokenizer_probes.py",
    "worker/tokenizer_texts.py",
)
_FACTS_CODE = (
    "checkpoints/adapter_config.py",
    "worker/adapter_merge.py",
    "checkpoints/adapter_tensors.py",
    "checkpoints/adapter.py",
    "worker/unfused.py",
    "worker/tokenizer_check.py",
    "worker/tokenizer_probes.py",
    "backends/pytorch/merge.py",
    "backends/pytorch/tokenizer_facts.py",
    "backends/pytorch/tokenizing.py",
)
_JUDGE_CODE = ("worker/judge.py", "worker/metrics.py", "worker/entry.py", "worker/protocol.py")


def source_digest(checkpoint: Checkpoint, store: Store, *, read_weights: bool) -> str | None:
    """Return the digest of a checkpoint's files; None if it is not known and not to be read."""
    if not checkpoint.links:
        return None
    digests: dict[str, str] = {}
    for name, path in checkpoint.links.items():
        if name.endswith(".safetensors"):
            found = store.weight_digest(path, read=read_weights)
            digest = found[0] if found else None
        else:
            digest = store.file_digest(path) if read_weights else store.known_digest(path)
        if digest is None:
            return None
        digests[name] = digest
    return combine_digests(digests)


def nonfinite_weights(checkpoint: Checkpoint, store: Store) -> Iterator[Problem]:
    """Yield the first weight of each file that is known not to be finite."""
    for name, path in checkpoint.links.items():
        known = store.weight_digest(path, read=False) if name.endswith(".safetensors") else None
        if known and known[1]:
            yield Problem(
                str(known[1]),
                str(path),
                "the checkpoint is damaged, or its training diverged; to build it all the same, "
                "where a format can hold it: allow_nonfinite=true",
            )


def has_changed(checkpoint: Checkpoint, digest: str, store: Store) -> bool:
    """Return whether a checkpoint's files are no more those that were hashed, by size and time of
    modification: what was read of them meanwhile may be anything."""
    return source_digest(checkpoint, store, read_weights=False) != digest


@cache
def _code_digest(files: tuple[str, ...], package: Path = _PACKAGE) -> str:
    digest = hashlib.sha256()
    for name in files:
        digest.update(name.encode() + b"\0" + (package / name).read_bytes())
    return digest.hexdigest()


@cache
def builder_digest(name: str) -> str:
    """Return the digest of what builds a backend's artifacts: its code and its locked toolchain."""
    folder = plugin(name).folder
    own = _code_digest(tuple(sorted(path.name for path in folder.glob("*.py"))), folder)
    shared = _code_digest(_SHARED_CODE)
    return content_key(
        {"backend": name, "code": [own, shared], "toolchain": toolchain(name).digest}
    )


@cache
def facts_digest() -> str:
    """Return the digest of what makes the facts that artifacts are built from: the tokenizer as
    Transformers has it, and weights that are merged or fused."""
    return content_key(
        {"code": _code_digest(_FACTS_CODE), "toolchain": toolchain(REFERENCE_BACKEND).digest}
    )


def source_key(source: str, checkpoint: Checkpoint) -> str:
    """Return the content key of what a source is."""
    fusing, adapter = checkpoint.fusing, checkpoint.adapter
    merged = adapter.to_json() if adapter else {}
    merged.pop("weights", None)  # a path; its content is in the source's digest
    return content_key(
        {
            "source": source,
            "fusing": fusing.to_json() if fusing else {},
            "adapter": merged,
            "facts": facts_digest(),
            "builder": builder_digest(REFERENCE_BACKEND),
        }
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
            "facts": facts_digest(),
            "builder": builder_digest(variant.backend),
            "phibuild": __version__,
        }
    )


def measure_key(artifact: str, reference: str) -> str:
    """Return the content key of a measurement: the artifact, the original's logits, the judge."""
    return content_key(
        {"artifact": artifact, "reference": reference, "judge": _code_digest(_JUDGE_CODE)}
    )
