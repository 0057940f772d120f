"""Which type each matrix gets, so that an artifact meets the target of its variant.

A matrix's loss with a type is what was measured with it alone on the grid, times the ratio of the
two squared errors; losses of several matrices add up. The best choice is found exactly, by dynamic
programming over bytes (the multiple-choice knapsack problem).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from phibuild.backends.base import Backend, MatrixTypes
from phibuild.backends.mixed import TARGET_KL, TARGET_SIZE, TYPES, affine_error
from phibuild.checkpoints.facts import Checkpoint
from phibuild.planning.sizes import estimate_artifact
from phibuild.schema import Misfit, Variant

if TYPE_CHECKING:  # a plan's start would wait a tenth of a second for what few variants need
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

_STEPS = 1 << 15
"""Parts that the room between the smallest and the largest choice is divided into."""
_UNKNOWN = 2_000_000
"""Bytes by which an estimate may be wrong (backends/base.py: `other_bytes`)."""


@dataclass(frozen=True)
class Loss:
    """What was measured with a matrix alone on a grid, in nats, and the standard error."""

    kl: float
    error: float


def with_types(
    spec: Backend,
    checkpoint: Checkpoint,
    variant: Variant,
    losses: Mapping[str, Loss] | None,
    spare: int = 0,
) -> Variant | None:
    """Return the variant with a type for each matrix that can have its own; None where even the
    smallest are too large, or the largest lose too much. `spare` bytes of a target size are left
    over, or half a percent of it: what is no weight is not known exactly before.

    `losses` are those measured on the variant's grid; without them all weights count alike, and a
    target loss takes the largest types: what is planned with until they are known. For a target
    loss each counts with two standard errors more: it is to be kept, not met on average.
    """
    import numpy as np

    assert variant.sensitivity is not None
    assert variant.sensitivity.grid is not None
    grid = variant.sensitivity.grid
    matrices = spec.matrices(checkpoint.architecture, variant)
    unit = affine_error(grid.bits, grid.group_size)
    errors = 2 if TARGET_KL in variant.options else 0
    measured = [
        _above(losses[matrix.source], errors) / unit if losses else matrix.choices[0].nbytes
        for matrix in matrices
    ]
    table = [
        np.array([loss * choice.error for choice in matrix.choices])
        for loss, matrix in zip(measured, matrices, strict=True)
    ]
    sizes = [np.array([choice.nbytes for choice in matrix.choices]) for matrix in matrices]
    smallest = _chosen(variant, matrices, [0] * len(matrices))
    least = estimate_artifact(spec, checkpoint, smallest).artifact_bytes
    room = variant.options.get(TARGET_SIZE)
    most = None if losses is None else variant.options.get(TARGET_KL)
    if room is not None:
        room -= least + (spare or min(room // 200, _UNKNOWN))
        if room < 0:
            return None
    numbers = choose(table, sizes, room, most)
    return None if numbers is None else _chosen(variant, matrices, numbers)


def with_target(spec: Backend, checkpoint: Checkpoint, variant: Variant) -> Variant | Misfit:
    """Return the variant, or why nothing meets its target."""
    size = variant.options.get(TARGET_SIZE)
    if size is None or with_types(spec, checkpoint, variant, None):
        return variant
    matrices = spec.matrices(checkpoint.architecture, variant)
    smallest = _chosen(variant, matrices, [0] * len(matrices))
    least = estimate_artifact(spec, checkpoint, smallest).artifact_bytes
    return Misfit(
        option=TARGET_SIZE,
        reason=f"{size:,} bytes are less than the smallest types take",
        remedy=f"they take {least:,}",
    )


def _chosen(variant: Variant, matrices: Sequence[MatrixTypes], numbers: Sequence[int]) -> Variant:
    types = {
        matrix.source: matrix.choices[number].kind
        for matrix, number in zip(matrices, numbers, strict=True)
    }
    return variant.model_copy(update={"options": {**variant.options, TYPES: types}})


def choose(
    losses: Sequence[Floats],
    sizes: Sequence[NDArray[np.int64]],
    room: int | None,
    most: float | None,
) -> list[int] | None:
    """Return which choice each of some things gets, by its number, of which 0 is the smallest.

    With `room`, the choice of least loss that takes no more than so many bytes beyond the smallest
    one; otherwise the smallest that loses no more than `most`, or None if there is none. With
    neither, the largest.
    """
    import numpy as np

    extra = [size - size[0] for size in sizes]
    whole = sum(int(one.max()) for one in extra)
    if room is None and most is None:
        return [int(one.argmax()) for one in extra]
    room = whole if room is None else min(room, whole)
    step = max(-(-room // _STEPS), 1)
    count = room // step + 1
    best: Floats = np.zeros(count)
    taken = []
    for loss, more in zip(losses, extra, strict=True):
        parts = -(-more // step)  # rounded up, so that the bytes are never more than the room
        options = np.full((len(loss), count), np.inf)
        for number, part in enumerate(parts):
            if part < count:
                options[number, part:] = best[: count - part] + loss[number]
        taken.append((options.argmin(0), parts))
        best = options.min(0)
    at = count - 1
    if most is not None:
        enough = np.flatnonzero(best <= most)
        if not len(enough):
            return None
        at = int(enough[0])
    numbers = []
    for choices, parts in reversed(taken):
        number = int(choices[at])
        numbers.append(number)
        at -= int(parts[number])
    return numbers[::-1]


def _above(loss: Loss, errors: float) -> float:
    return loss.kl + errors * loss.error


def read_losses(folder: Path) -> dict[str, Loss]:
    """Return matrix -> loss of what a step of sensitivities left."""
    data = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    return {name: Loss(kl, error or 0.0) for name, (kl, error) in data["kl"].items()}
