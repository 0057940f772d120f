"""What runners are asked for: all of a request that decides its result, and so is in its key.

The steps add places, threads, and what a result does not depend on.
"""

from __future__ import annotations

from typing import Any

from phibuild.backends.calibration import CHUNK_TOKENS
from phibuild.checkpoints.facts import Checkpoint
from phibuild.schema import Calibration, Evaluation


def source_request(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what a source is read for. The adapter's `weights` are a path."""
    return {
        **_request("source", checkpoint),
        "fusing": checkpoint.fusing.to_json() if checkpoint.fusing else {},
        "adapter": checkpoint.adapter.to_json() if checkpoint.adapter else None,
    }


def reference_request(checkpoint: Checkpoint, evaluation: Evaluation) -> dict[str, Any]:
    """Return what logits are wanted of the original."""
    return {
        **_request("reference", checkpoint),
        "windows": evaluation.windows,
        "window_tokens": evaluation.window_tokens,
        "max_bytes": evaluation.max_reference_bytes,
        "long": True,
    }


def activations_request(checkpoint: Checkpoint, calibration: Calibration) -> dict[str, Any]:
    """Return what activations are wanted of the original."""
    return {
        **_request("activations", checkpoint),
        "tokens": calibration.tokens,
        "chunk_tokens": CHUNK_TOKENS,
    }


def build_request(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what all artifacts of a model are built from. The model's name is in some formats'
    metadata."""
    return {**_request("build", checkpoint), "model": checkpoint.name}


def judge_request(evaluation: Evaluation) -> dict[str, Any]:
    """Return how artifacts are judged, besides by the original's logits."""
    return {"verb": "judge", "decode_tokens": evaluation.decode_tokens}


def _request(verb: str, checkpoint: Checkpoint) -> dict[str, Any]:
    return {"verb": verb, "architecture": checkpoint.architecture.to_json()}
