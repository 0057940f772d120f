"""What runners are asked (worker/requests.py): all of a request that decides its result, and so is
in its key (keys.py). The steps add places, threads, and what has no say in a result."""

from __future__ import annotations

from typing import Literal, TypedDict

from phibuild.backends.calibration import CHUNK_TOKENS, SENSITIVITY_CHUNK_TOKENS
from phibuild.checkpoints.facts import Checkpoint
from phibuild.schema import Calibration, Evaluation
from phibuild.worker.json_values import JsonDict

Asked = JsonDict


class AskedOfBuild(TypedDict):
    """What all artifacts of a model are built from. Its name is in some formats' metadata."""

    verb: Literal["build"]
    architecture: JsonDict
    model: str


class AskedOfJudge(TypedDict):
    """How artifacts are judged, besides by the original's logits."""

    verb: Literal["judge"]
    decode_tokens: int
    adaptive: bool


def asked_of_source(checkpoint: Checkpoint) -> Asked:
    """Return what a source is read for. The adapter's `weights` are a path."""
    return {
        "verb": "source",
        "architecture": checkpoint.architecture.to_json(),
        "fusing": checkpoint.fusing.to_json() if checkpoint.fusing else {},
        "adapter": checkpoint.adapter.to_json() if checkpoint.adapter else None,
    }


def asked_of_reference(checkpoint: Checkpoint, evaluation: Evaluation) -> Asked:
    """Return what logits are wanted of the original."""
    return {
        "verb": "reference",
        "architecture": checkpoint.architecture.to_json(),
        "windows": evaluation.windows,
        "window_tokens": evaluation.window_tokens,
        "max_bytes": evaluation.max_reference_bytes,
        "long": True,
    }


def asked_of_activations(checkpoint: Checkpoint, calibration: Calibration) -> Asked:
    """Return what activations are wanted of the original."""
    return {
        "verb": "activations",
        "architecture": checkpoint.architecture.to_json(),
        "tokens": calibration.tokens,
        "chunk_tokens": CHUNK_TOKENS,
    }


def asked_of_quantize(checkpoint: Checkpoint, calibration: Calibration) -> Asked:
    """Return what calibration is wanted of the original, for whatever grids."""
    return {**asked_of_activations(checkpoint, calibration), "verb": "quantize"}


def asked_of_sensitivity(checkpoint: Checkpoint, calibration: Calibration) -> Asked:
    """Return what losses are wanted of the original."""
    assert calibration.grid is not None  # they are those of a grid
    return {
        "verb": "sensitivity",
        "architecture": checkpoint.architecture.to_json(),
        "tokens": calibration.tokens,
        "chunk_tokens": SENSITIVITY_CHUNK_TOKENS,
        "grid": calibration.grid.to_json(),
        "long": calibration.long,
    }


def asked_of_build(checkpoint: Checkpoint) -> AskedOfBuild:
    """Return what is asked of every build of a model."""
    return {
        "verb": "build",
        "architecture": checkpoint.architecture.to_json(),
        "model": checkpoint.name,
    }


def asked_of_judge(evaluation: Evaluation) -> AskedOfJudge:
    """Return what is asked of all judging."""
    return {
        "verb": "judge",
        "decode_tokens": evaluation.decode_tokens,
        "adaptive": evaluation.adaptive,
    }
