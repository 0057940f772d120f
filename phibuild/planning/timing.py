"""How long a step is likely to take: by what steps of its kind took on this machine.

`usage/times-<digest>.json` of the store has the last runs for each kind of step, backend and
machine. A step of exactly the same kind (code, shape, variants, text) takes what it took then.
Another one is scaled by its work, which grows with weights and tokens, and by its threads; what
went into imports does not grow. Beyond a hundredfold that says nothing, and nothing is said.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import singledispatch
from statistics import median
from typing import Literal

from pydantic import Field

from phibuild.config.executors import ExecutorSettings, SlurmSettings
from phibuild.planning.plan import Plan
from phibuild.planning.steps import (
    BuildStep,
    CalibrationStep,
    MeasureStep,
    OriginalStep,
    QuantizeStep,
    ReferenceStep,
    SensitivityStep,
    Step,
)
from phibuild.schema import Document
from phibuild.store.documents import Seconds
from phibuild.store.store import Store, content_key
from phibuild.system.machine import machine_name

Basis = Literal["same", "scaled"]
"""same: by steps of exactly its kind; scaled: by others' of its sort, with more or less work."""
_KEPT, _KEPT_OF_A_KIND = 40, 3
_FARTHEST = 100.0
"""How much more or less work a step may have than what is known, to say anything of it."""


class TimedRun(Document):
    """A step that ran and did all that it had to."""

    key: str
    """Its kind, as MemoryNeed has it."""
    names: list[str]
    """Variants that it built or judged."""
    work: float
    """Weights, times tokens where it runs a model over some, for all variants."""
    threads: int
    seconds: Seconds
    fixed_seconds: Seconds
    """Of these, what does not grow with the work: imports, and the loading of libraries."""


class StepTimes(Document):
    """usage/times-<digest>.json of the store, oldest first."""

    runs: list[TimedRun] = Field(default_factory=list)


@dataclass(frozen=True)
class Expected:
    """Seconds that a step is likely to take, and what that rests on."""

    seconds: float
    basis: Basis


@dataclass(frozen=True)
class Times:
    """What a store knows of the times of steps on one `machine`."""

    store: Store
    machine: str

    def expected(self, step: Step, plan: Plan, threads: int) -> Expected | None:
        """Return what a step is likely to take, None if nothing comparable is known."""
        runs = self._read(step)
        same = [run for run in runs if run.key == step.need.key and run.threads == threads]
        if same:
            return Expected(median(run.seconds for run in same), "same")
        amount, names = work(step, plan), _names(step)
        near = [run for run in runs if 1 / _FARTHEST <= amount / run.work <= _FARTHEST]
        if not near:
            return None
        # Of those with the most similar variants the one with the most similar work, newest first.
        run = min(
            reversed(near),
            key=lambda run: (-_similarity(names, run.names), _distance(amount, run.work)),
        )
        grows = max(run.seconds - run.fixed_seconds, 0.0)
        scaled = grows * amount / run.work * run.threads / threads
        return Expected(min(run.fixed_seconds, run.seconds) + scaled, "scaled")

    def note(self, step: Step, plan: Plan, threads: int, seconds: float, fixed: float) -> None:
        """Remember what a step took, of which `fixed` seconds do not grow with its work. Raises
        OSError if the store cannot be written."""
        run = TimedRun(
            key=step.need.key,
            names=_names(step),
            work=work(step, plan),
            threads=threads,
            seconds=seconds,
            fixed_seconds=min(fixed, seconds),
        )
        runs = self._read(step)
        of_its_kind = [one for one in runs if (one.key, one.threads) == (run.key, threads)]
        dropped = of_its_kind[: len(of_its_kind) - _KEPT_OF_A_KIND + 1]
        runs = [*(one for one in runs if one not in dropped), run][-_KEPT:]
        text = json.dumps(StepTimes(runs=runs).model_dump(mode="json"))
        self.store.write(self.store.root / "usage" / self._name(step), text)

    def _read(self, step: Step) -> Sequence[TimedRun]:
        try:
            text = (self.store.root / "usage" / self._name(step)).read_text(encoding="utf-8")
            runs = StepTimes.read(json.loads(text)).runs
        except (OSError, ValueError, RecursionError):
            return []  # never ran, or the file is damaged
        return [run for run in runs if run.work > 0 and run.threads > 0]

    def _name(self, step: Step) -> str:
        data = {"kind": step.kind, "backend": step.backend, "machine": self.machine}
        return f"times-{content_key(data)[:32]}.json"


def machine_of(settings: ExecutorSettings | SlurmSettings) -> str:
    """Return what steps run on: this machine, or the nodes of a partition."""
    if settings.kind == "slurm":
        return f"slurm {settings.partition or 'default'}"
    return machine_name()


def _names(step: Step) -> list[str]:
    return sorted(artifact.variant.name for artifact in step.artifacts)


def _similarity(names: Sequence[str], others: Sequence[str]) -> float:
    """Return the share of names that two steps have in common; 1 if neither has any."""
    either = {*names, *others}
    return len({*names} & {*others}) / len(either) if either else 1.0


def _distance(amount: float, other: float) -> float:
    return max(amount / other, other / amount)


@singledispatch
def work(step: Step, plan: Plan) -> float:
    """Return what a step's time grows with, in a unit of its kind."""
    raise NotImplementedError(step.kind)


def _weights(step: Step, plan: Plan) -> float:
    return float(max(plan.matrix.models[step.model].architecture.parameters, 1))


@work.register
def _original(step: OriginalStep, plan: Plan) -> float:
    return _weights(step, plan)


@work.register
def _reference(step: ReferenceStep, plan: Plan) -> float:
    return _weights(step, plan) * plan.evaluation.windows * plan.evaluation.window_tokens


@work.register
def _calibration(step: CalibrationStep, plan: Plan) -> float:
    return _weights(step, plan) * max(step.calibration.tokens, 1)


@work.register
def _sensitivity(step: SensitivityStep, plan: Plan) -> float:
    """A model for each matrix that has been met goes through all layers that follow."""
    layers = plan.matrix.models[step.model].architecture.layers
    return _weights(step, plan) * max(step.calibration.tokens, 1) * max(layers, 1)


@work.register
def _quantize(step: QuantizeStep, plan: Plan) -> float:
    """GPTQ takes a matrix's weights times its columns, for each grid."""
    hidden = plan.matrix.models[step.model].architecture.hidden_size
    return _weights(step, plan) * hidden * max(len(step.grids), 1)


@work.register
def _build(step: BuildStep, plan: Plan) -> float:
    return _weights(step, plan) * max(len(step.artifacts), 1)


@work.register
def _measure(step: MeasureStep, plan: Plan) -> float:
    evaluation = plan.evaluation
    tokens = evaluation.windows * evaluation.window_tokens + evaluation.decode_tokens
    return _weights(step, plan) * tokens * max(len(step.artifacts), 1)
