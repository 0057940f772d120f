"""Artifacts whose types are chosen by what each matrix loses: when that is known, and once more
where the first choice came out larger than its target."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from phibuild.backends.mixed import TARGET_SIZE
from phibuild.backends.registry import backend
from phibuild.execute.context import Context
from phibuild.execute.runner.events import BadResult
from phibuild.planning.mixing import read_losses, with_types
from phibuild.planning.sizes import estimate_artifact
from phibuild.planning.steps import PlannedArtifact

_DOCUMENTS_BYTES = 8192
"""README.md, which comes last, at most."""
_GRAPH_BYTES = 8192
"""By which a graph's text differs from one choice of types to the next, at most."""


def with_chosen_types(
    context: Context, artifact: PlannedArtifact, spare: int = 0
) -> PlannedArtifact:
    """Return the artifact with its types, `spare` being the bytes by which it came out larger than
    its estimate before. Raises BadResult where none meet its target."""
    if artifact.sensitivity is None:
        return artifact
    folder = context.originals[artifact.sensitivity].folder
    assert folder is not None  # the step has left it, or the artifact would not be built
    spec = backend(artifact.variant.backend)
    checkpoint = context.plan.matrix.models[artifact.model]
    spare += _GRAPH_BYTES if spare else 0
    variant = with_types(spec, checkpoint, artifact.variant, read_losses(folder), spare)
    if variant is None:
        limit = TARGET_SIZE if TARGET_SIZE in artifact.variant.options else "target_kl"
        raise BadResult(f"no choice of types keeps its {limit}")
    return replace(artifact, variant=variant, estimate=estimate_artifact(spec, checkpoint, variant))


def surplus_bytes(artifact: PlannedArtifact, folder: Path) -> int:
    """Return by how much an artifact is larger than its estimate, where it is larger than its
    target size; 0 where it is not, or has none."""
    target = artifact.variant.options.get(TARGET_SIZE)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    size += _DOCUMENTS_BYTES
    return 0 if target is None or size <= target else size - artifact.estimate.artifact_bytes
