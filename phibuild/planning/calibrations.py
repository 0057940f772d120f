"""The steps that run the original over calibration texts: activations, and weights on grids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from phibuild.backends.calibration import CHUNK_TOKENS, SENSITIVITY_CHUNK_TOKENS
from phibuild.backends.pytorch.memory import (
    activations_memory,
    quantize_memory,
    sensitivity_memory,
    sensitivity_states,
)
from phibuild.checkpoints.facts import Checkpoint
from phibuild.planning.code import step_digest
from phibuild.planning.keys import Keys
from phibuild.planning.matrix import Matrix
from phibuild.planning.memory import MemoryNeed, memory_need
from phibuild.planning.steps import (
    REFERENCE_BACKEND,
    ActivationsStep,
    CalibrationStep,
    QuantizeStep,
    SensitivityStep,
)
from phibuild.schema import Calibration
from phibuild.store.store import Store
from phibuild.worker.grids import Grid, calibrated

_FP32 = 4
_BOUNDS = {
    "activations": (activations_memory, CHUNK_TOKENS),
    "quantize": (quantize_memory, CHUNK_TOKENS),
    "sensitivity": (sensitivity_memory, SENSITIVITY_CHUNK_TOKENS),
}
"""Kind of a step -> its bound of memory, and the tokens of its chunks."""


def calibration_steps(
    matrix: Matrix, keys: Mapping[str, Keys], store: Store
) -> tuple[CalibrationStep, ...]:
    """Return a step for every model and calibration text that goes with it; one makes the weights
    on all grids."""
    wanted = dict.fromkeys(
        (cell.model, calibration)
        for cell in matrix.cells
        if cell.variant
        for calibration in cell.variant.texts
    )
    grids: dict[tuple[str, Calibration], list[Calibration]] = {}
    steps: list[CalibrationStep] = []
    for model, calibration in wanted:
        if calibration.grid is not None and not calibration.losses:
            grids.setdefault((model, calibration.text), []).append(calibration)
            continue
        key = keys[model].calibrated(calibration)
        kind = SensitivityStep if calibration.losses else ActivationsStep
        checkpoint, there = matrix.models[model], is_there(key, keys[model], store)
        need = _need(kind.kind, checkpoint, calibration, store)
        states = 0
        if calibration.losses and not there:
            states = sensitivity_states(checkpoint.architecture, calibration.tokens)
        steps.append(kind(model, key, need, there, calibration, states))
    for (model, text), some in grids.items():
        checkpoint = matrix.models[model]
        made = {keys[model].calibrated(one): one.grid for one in some if one.grid}
        missing = [grid for key, grid in made.items() if not is_there(key, keys[model], store)]
        steps.append(
            QuantizeStep(
                model,
                keys[model].quantize(text),
                _need("quantize", checkpoint, text, store),
                not missing,
                text,
                sum(_disk_bytes(checkpoint, text, missing)),
                made,
            )
        )
    return tuple(steps)


def is_there(key: str, keys: Keys, store: Store) -> bool:
    """Return whether the store has what the original left under one of a checkpoint's keys."""
    return keys.digest is not None and store.reference(key) is not None


def _need(kind: str, checkpoint: Checkpoint, text: Calibration, store: Store) -> MemoryNeed:
    arch, (bound, chunk) = checkpoint.architecture, _BOUNDS[kind]
    decides = {
        "step": kind,
        "builder": step_digest(kind, REFERENCE_BACKEND, store),
        "architecture": arch.to_json(),
        "tokens": text.tokens,
    }
    return memory_need(store, decides, bound(arch, text.tokens, chunk))


def _disk_bytes(checkpoint: Checkpoint, text: Calibration, missing: list[Grid]) -> Iterator[int]:
    """Yield the bytes of the codes of each grid, and those of the states that are kept until all
    are there."""
    arch = checkpoint.architecture
    for grid in missing:
        yield sum(grid.nbytes(*shape) for _, shape in calibrated(arch, grid))
    if missing:
        yield 2 * _FP32 * text.tokens * arch.hidden_size
