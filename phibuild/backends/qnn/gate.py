"""What was compiled for the NPU against its graphs on the CPU, in the simulator: a part of a prompt
and then tokens one by one, through the cache that both keep.

Parts run one after the other for all tokens, so that one part's binary is in memory at a time.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from phibuild.backends.qnn.genai import PHASES
from phibuild.backends.qnn.layout import Part
from phibuild.backends.qnn.names import (
    COS,
    IDS,
    LAST,
    LOGITS,
    MASK,
    NEWS,
    PASTS,
    SIN,
    TOTAL,
    hidden_name,
)
from phibuild.worker.architecture import Architecture
from phibuild.worker.protocol import WorkerError

LIMIT = 0.01
"""Nats of KL divergence that the NPU may be from the CPU."""
Values = dict[str, NDArray[np.generic]]
Sessions = Mapping[str, ort.InferenceSession]
"""Of a part, by phase."""
_FIXED = (COS, SIN, MASK)


@dataclass
class _Side:
    """What one of the two computed so far: for each pass what the next part takes."""

    hidden: list[NDArray[np.generic]] = field(default_factory=list)
    logits: list[NDArray[np.float32]] = field(default_factory=list)


class Gate:
    """The comparison while parts are compiled; `steps` are the tokens after the prompt's part."""

    def __init__(
        self,
        arch: Architecture,
        context: int,
        inputs: ort.InferenceSession,
        steps: int,
        seed: int = 0,
    ) -> None:
        self._arch, self._context, self.steps = arch, context, steps
        self.seconds = 0.0
        ids = np.random.default_rng(seed).integers(0, arch.vocab_size, PHASES["prompt"] + steps)
        self._passes: list[tuple[str, int, Values]] = []
        first = 0
        for phase in ("prompt", *["token"] * steps):
            count = PHASES[phase]
            given = {
                IDS: ids[None, first : first + count].astype(np.int32),
                LAST: np.array([[first + count - 1]], np.int32),
                TOTAL: np.array([context], np.int32),
            }
            names = [output.name for output in inputs.get_outputs()]
            made = dict(zip(names, inputs.run(None, given), strict=True))
            self._passes.append((phase, first, made))
            first += count
        vectors = [made[hidden_name(0)] for _, _, made in self._passes]
        self._sides = {"cpu": _Side(list(vectors)), "npu": _Side(list(vectors))}

    def run(self, part: Part, cpu: Sessions, npu: Sessions) -> None:
        """Run a part on both, with what each made of the parts before it."""
        started = time.perf_counter()
        for name, sessions in (("cpu", cpu), ("npu", npu)):
            side = self._sides[name]
            side.hidden = self._through(part, sessions, side.hidden)
            if not part.layers:
                side.logits = [logits.astype(np.float32)[0] for logits in side.hidden]
        self.seconds += time.perf_counter() - started

    def _through(
        self, part: Part, sessions: Sessions, hidden: list[NDArray[np.generic]]
    ) -> list[NDArray[np.generic]]:
        shape = (1, self._arch.kv_heads, self._context, self._arch.head_dim)
        cache = {past % n: np.zeros(shape, np.float16) for n in part.layers for past in PASTS}
        after = hidden_name(part.end) if part.layers else LOGITS
        news = [new % n for n in part.layers for new in NEWS]
        made = []
        for (phase, first, fixed), vectors in zip(self._passes, hidden, strict=True):
            inputs: Values = {hidden_name(part.first): vectors, **cache}
            if part.layers:
                inputs |= {name: fixed[name] for name in _FIXED}
            output, *entries = sessions[phase].run([after, *news], inputs)
            made.append(output)
            for past, entry in zip(cache, entries, strict=True):
                cache[past][:, :, first : first + PHASES[phase]] = entry
        return made

    def result(self) -> dict[str, float | int]:
        """Return how far the NPU is from the CPU: mean KL divergence (nats) over the prompt's
        tokens and over those after it. Raises WorkerError if it is another model."""
        cpu, npu = self._sides["cpu"].logits, self._sides["npu"].logits
        found = [_divergence(a, b) for a, b in zip(cpu, npu, strict=True)]
        prompt = float(found[0].mean())
        steps = float(np.concatenate(found[1:]).mean()) if self.steps else 0.0
        if not max(prompt, steps) <= LIMIT:  # nan too
            raise WorkerError(
                "in Qualcomm's simulator the binaries are another model than their graphs on the "
                f"CPU: mean KL {prompt:.3g} nats for a prompt, {steps:.3g} for tokens one by one "
                f"(limit {LIMIT})"
            )
        return {
            "prompt_tokens": PHASES["prompt"],
            "prompt_kl": prompt,
            "cached_tokens": self.steps,
            "cached_kl": steps,
        }


def _divergence(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return KL(one || other) of each row of logits [T, V], in nats."""
    a, b = (_log_softmax(logits.astype(np.float64)) for logits in (one, other))
    found: NDArray[np.float64] = np.sum(np.exp(a) * (a - b), axis=-1)
    return np.maximum(found, 0)  # what rounding makes of nothing


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    found: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return found
