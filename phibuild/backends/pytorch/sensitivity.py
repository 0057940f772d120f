"""The verb `sensitivity`: what the original's predictions lose when one of its matrices is put on a
grid, and nothing else is.

One pass through the layers carries the states of the original and, beside them, those of a model
for each matrix that has been met, which is the original but for that matrix. So every loss is
measured, KL(original || model) in nats, and a layer's weights are read once. A run that is killed
goes on after the last model that a layer's states were kept of.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from phibuild.backends.pytorch.activations import choose_chunks
from phibuild.backends.pytorch.gptq.layers import LINEAR
from phibuild.backends.pytorch.gptq.scales import nearest
from phibuild.backends.pytorch.kept_states import KeptStates, load_sums, save_sums
from phibuild.backends.pytorch.layers import in_batches
from phibuild.backends.pytorch.layerwise import LayerwisePhi3, Positions
from phibuild.backends.pytorch.memory import GPTQ_ELEMENTS, SENSITIVITY_TOKENS
from phibuild.backends.pytorch.threads import use_threads
from phibuild.worker.architecture import Architecture
from phibuild.worker.grids import Grid
from phibuild.worker.metrics import standard_error
from phibuild.worker.protocol import Report
from phibuild.worker.requests import SensitivityRequest

EMBEDDING = "model.embed_tokens.weight"
_ORIGINAL = 0
"""The number of the original among the models; those of the matrices come after it."""


def sensitivity(request: SensitivityRequest, report: Report) -> None:
    """Write meta.json into the empty folder `output`: the grid, the tokens, and `kl`, matrix ->
    its loss and that one's standard error over chunks. A text that is too short or does not suit
    the model fails the item."""
    try:
        result = _sensitivity(request, report)
    except Exception as error:  # whatever Transformers raises is this item's failure
        report.failed(request["item"], error)
    else:
        report.item(request["item"], result)


def _sensitivity(request: SensitivityRequest, report: Report) -> dict[str, object]:
    started, item = time.perf_counter(), request["item"]
    use_threads(request["threads"])
    report.stage("tokenizing", item=item)
    arch = Architecture.from_json(request["architecture"])
    chunks = choose_chunks(request, arch)
    report.stage("loading", item=item)
    grid, output = Grid.from_json(request["grid"]), Path(request["output"])

    def say(fraction: float) -> None:
        report.stage("measuring sensitivity", fraction, item)

    with torch.inference_mode():
        model = LayerwisePhi3(Path(request["source"]), arch)
        ids = torch.from_numpy(chunks.astype(np.int64))
        positions = model.long_positions(ids.shape[1]) if request["long"] else None
        found = measure(model, ids, positions, grid, Path(request["states"]), say)
    result: dict[str, object] = {
        "grid": grid.to_json(),
        "tokens": int(chunks.size),
        "chunks": len(chunks),
        "seconds": time.perf_counter() - started,
        "kl": found,
    }
    (output / "meta.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return {key: value for key, value in result.items() if key != "kl"}


def measure(
    model: LayerwisePhi3,
    ids: Tensor,
    positions: Positions | None,
    grid: Grid,
    room: Path,
    say: Callable[[float], None],
) -> dict[str, tuple[float, float | None]]:
    """Return for each matrix its loss over the chunks `ids` [C, T], in nats, and that one's
    standard error. `positions` rotate other than the model's own; the states are kept in the folder
    `room`, and what another run of the same left there is gone on with."""
    layers = model.config.num_hidden_layers
    names = [EMBEDDING]
    names += [f"model.layers.{n}.{name}.weight" for n in range(layers) for name in LINEAR]
    embedded = model.embed(ids)
    kept = KeptStates(room, 1 + len(names), tuple(embedded.shape))
    if kept.passed(_ORIGINAL) < 0:
        with kept.next(_ORIGINAL, 0) as states:
            states.copy_(embedded)
    if kept.passed(1) < 0:
        with kept.next(1, 0) as states:
            for chunk, original in zip(states, embedded, strict=True):
                chunk.copy_(nearest(original, grid))
    positions, mask = positions or model.positions(0, ids.shape[1]), model.mask(ids.shape[1])

    def pass_on(layer: Module, source: int, target: int, passed: int) -> None:
        """Give the model `target` what a layer makes of the states of `source`, if it lacks it."""
        if kept.passed(target) >= passed:
            return
        with kept.next(target, passed) as states:
            sources, targets = (
                in_batches(one, SENSITIVITY_TOKENS) for one in (kept.states(source), states)
            )
            for batch, out in zip(sources, targets, strict=True):
                out.copy_(layer(batch, attention_mask=mask, position_embeddings=positions))

    first = min(kept.passed(_ORIGINAL), layers)
    for number, layer in enumerate(model.layers(first), first):
        met = 2 + number * len(LINEAR)
        for one in range(1, met):
            pass_on(layer, one, one, number + 1)
        for place, name in enumerate(LINEAR, met):
            if kept.passed(place) <= number:
                with _on_grid(layer.get_submodule(name), grid):
                    pass_on(layer, _ORIGINAL, place, number + 1)
        # The last: those of the next layer's matrices, and of a run that goes on, begin with it.
        pass_on(layer, _ORIGINAL, _ORIGINAL, number + 1)
        say((number + 1) / (layers + 1))
    for one in range(1 + len(names)):
        if kept.passed(one) == layers:
            with kept.next(one, layers + 1) as states:
                batches = (in_batches(some) for some in (kept.states(one), states))
                for batch, out in zip(*batches, strict=True):
                    out.copy_(model.norm(batch))
    original, *states_of = (kept.states(one).flatten(0, 1) for one in range(1 + len(names)))
    losses = _Losses(model, original, states_of, grid, room)
    if not model.config.tie_word_embeddings:
        names.append(model.head_name)
    by_chunk = losses.measure().view(len(names), *ids.shape)
    return {
        name: (max(float(kl.mean()), 0.0), standard_error(list(kl.numpy())))
        for name, kl in zip(names, by_chunk, strict=True)
    }


@contextmanager
def _on_grid(module: Module, grid: Grid) -> Iterator[None]:
    """Have a linear layer's weights on a grid for a while."""
    weight = module.weight
    rows = weight.data
    step = max(GPTQ_ELEMENTS // rows.shape[1], 1)
    weight.data = torch.empty_like(rows)
    for some, out in zip(rows.split(step), weight.data.split(step), strict=True):
        out.copy_(nearest(some, grid))
    try:
        yield
    finally:
        weight.data = rows


@dataclass
class _Losses:
    """What lm_head makes of the states [N, hidden] of the original and of each model, and of the
    original's with lm_head itself on the grid: in a tied model that is the first one's too. Sums
    over the parts of lm_head that are done are kept in the folder `room`."""

    model: LayerwisePhi3
    original: Tensor
    states: list[Tensor]
    grid: Grid
    room: Path

    def measure(self) -> Tensor:
        """Return KL(original || model) of each model and token [models, N], float64.

        As in worker/metrics.py, with a the original's logits and b a model's: sum P (a - b), less
        ln sum exp a, and ln sum exp b; added up over parts of the vocabulary.
        """
        tied = self.model.config.tie_word_embeddings
        inputs = self.states if tied else [*self.states, self.original]
        on_grid = 0 if tied else len(inputs) - 1
        whole = torch.full((len(self.original),), -torch.inf, dtype=torch.float64)
        for _, rows in self.model.head():
            for part, total in self._blocks(whole):
                total.copy_(torch.logaddexp(total, _logits(self.original[part], rows).logsumexp(1)))
        differences = torch.zeros(len(inputs), len(whole), dtype=torch.float64)
        sums = torch.full_like(differences, -torch.inf)
        done = load_sums(self.room, differences, sums)
        for number_of_part, (_, rows) in enumerate(self.model.head()):
            if number_of_part < done:
                continue
            rounded = nearest(rows, self.grid)
            for part, total in self._blocks(whole):
                a = _logits(self.original[part], rows)
                p = (a - total[:, None]).exp_()
                for number, state in enumerate(inputs):
                    b = _logits(state[part], rounded if number == on_grid else rows)
                    sums[number, part] = torch.logaddexp(sums[number, part], b.logsumexp(1))
                    differences[number, part] += b.neg_().add_(a).mul_(p).sum(1)
            save_sums(self.room, number_of_part + 1, differences, sums)
        return differences + sums - whole

    def _blocks(self, values: Tensor) -> Iterator[tuple[slice, Tensor]]:
        for first in range(0, len(values), SENSITIVITY_TOKENS):
            part = slice(first, first + SENSITIVITY_TOKENS)
            yield part, values[part]


def _logits(states: Tensor, rows: Tensor) -> Tensor:
    return (states @ rows.T).double()
