"""How an artifact is judged on this machine: in which form, and by how much of each window."""

from __future__ import annotations

from phibuild.backends.base import Backend
from phibuild.schema import Evaluation, Judging, Variant
from phibuild.worker.architecture import Architecture


def judged_tokens(
    spec: Backend, architecture: Architecture, variant: Variant, evaluation: Evaluation
) -> int | None:
    """Return how many tokens of each window an artifact is judged by, the first of them, where it
    holds no more; None: by all."""
    most = spec.most_tokens(architecture, variant)
    return most if most is not None and most < evaluation.window_tokens else None


def how_judged(
    spec: Backend, architecture: Architecture, variant: Variant, evaluation: Evaluation
) -> Judging:
    """Return how this machine judges a variant over these windows.

    The first tokens of a window say nothing where the original has rotated all of it by longrope's
    long factors, and the artifact, which holds fewer tokens, does so by the short ones.
    """
    found = spec.judging(variant)
    tokens = judged_tokens(spec, architecture, variant, evaluation)
    original = architecture.original_max_positions
    if (
        found.how == "no"
        or tokens is None
        or not architecture.rope.is_longrope
        or not tokens <= original < evaluation.window_tokens
    ):
        return found
    return Judging(
        how="no",
        note=f"it holds {tokens:,} tokens, and over windows of {evaluation.window_tokens:,} the "
        "original has longrope's long factors; set evaluation.window_tokens to "
        f"{original} at most",
    )
