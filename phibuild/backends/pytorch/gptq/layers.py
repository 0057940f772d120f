"""Layer by layer over the original: the Hessians of each layer's linear layers, and every grid that
lacks the layer.

The inputs are those of the original, not of layers that are quantized already: one pass then serves
all grids, and measured on the embedded model the loss is the same to within its error (see
docs/quantization.md).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from phibuild.backends.pytorch.gptq.columns import quantize
from phibuild.backends.pytorch.gptq.factor import Hessian
from phibuild.backends.pytorch.layers import in_batches
from phibuild.backends.pytorch.layerwise import LayerwisePhi3
from phibuild.backends.pytorch.memory import GPTQ_ELEMENTS, GPTQ_THREADS, GPTQ_TOKENS
from phibuild.worker.codes import HEAD, CodeWriter, Rows, layer_file
from phibuild.worker.grids import Grid
from phibuild.worker.protocol import WorkerError

LINEAR = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
"""The linear layers of a decoder layer."""
_Say = Callable[[str, float], None]


@dataclass
class Output:
    """The codes of one grid on their way into a folder; `error` says why there are none."""

    item: str
    grid: Grid
    folder: Path
    error: Exception | None = None

    def lacks(self, file: str) -> bool:
        return self.error is None and not (self.folder / file).exists()


@dataclass
class Pass:
    """The original and the states of all tokens on their way through it."""

    model: LayerwisePhi3
    states: Tensor
    saved: States
    threads: int
    say: _Say

    def run(self, outputs: Sequence[Output]) -> None:
        """Write what the outputs lack. Layers that all of them have are passed through alone, and
        those before the states that were saved are not even that."""
        layers = self.model.config.num_hidden_layers
        first = self._begin(outputs, layers)
        positions = self.model.positions(0, self.states.shape[1])
        mask = self.model.mask(self.states.shape[1])
        number = first - 1
        for layer in self.model.layers(first):  # enumerate would keep a layer that is dropped
            number += 1
            wanting = [one for one in outputs if one.lacks(layer_file(number))]
            with _Watched(layer if wanting else None) as hessians:
                for batch in in_batches(self.states, GPTQ_TOKENS):
                    batch.copy_(layer(batch, attention_mask=mask, position_embeddings=positions))
            del layer
            self.model.drop()
            matrices = {
                f"model.layers.{number}.{name}.weight": hessians.pop(name)
                for name in list(hessians)
            }
            self._quantize(layer_file(number), matrices, wanting)
            self.saved.save(self.states, number + 1)
            self.say("quantizing", (number + 1) / (layers + 1))
        wanting = [one for one in outputs if one.grid.head and one.lacks(HEAD)]
        if wanting:
            hessian = Hessian(self.states.shape[2])
            for batch in in_batches(self.states):
                hessian.add(self.model.norm(batch))
            self._quantize(HEAD, {self.model.head_name: hessian}, wanting)

    def _begin(self, outputs: Sequence[Output], layers: int) -> int:
        """Return the layer to begin with, and take the states before it."""
        lacking = (
            number
            for number in range(layers)
            if any(one.lacks(layer_file(number)) for one in outputs)
        )
        first = next(lacking, layers)
        for number in range(first, 0, -1):
            if self.saved.load(self.states, number):
                return number
        return 0

    def _quantize(self, file: str, matrices: dict[str, Hessian], outputs: Sequence[Output]) -> None:
        """Write one file of each output: these matrices, of which each Hessian is used up."""
        if not outputs:
            return
        writers: dict[str, CodeWriter] = {}
        shapes = {name: self.model.shape(name) for name in matrices}
        try:
            for one in outputs:
                writers[one.item] = CodeWriter(one.folder, file, one.grid, shapes)
            for name in sorted(matrices, key=lambda name: shapes[name][1]):
                self._matrix(name, matrices.pop(name), outputs, writers)
            for one in outputs:
                if one.error is None:
                    writers[one.item].finish()
        finally:
            for writer in writers.values():
                writer.close()

    def _matrix(
        self,
        name: str,
        hessian: Hessian,
        outputs: Sequence[Output],
        writers: Mapping[str, CodeWriter],
    ) -> None:
        importance = hessian.diagonal()
        factor = hessian.factor()
        rows, columns = self.model.shape(name)
        step = max(GPTQ_ELEMENTS // columns // 32, 1) * 32

        def work(first: int) -> None:
            torch.set_num_threads(1)  # of this thread
            weights = torch.empty(min(step, rows - first), columns)
            self.model.fill(name, weights, first)
            for one in outputs:
                if one.error is not None:
                    continue
                made = quantize(weights, factor, importance, one.grid)
                stored = made.scales if made.steps is None else made.steps
                if not torch.isfinite(stored).all():
                    one.error = WorkerError(
                        f"{name}: a scale is beyond what {one.grid.scale} holds, or not a number"
                    )
                    continue
                arrays = (made.codes.numpy(), made.scales.numpy(), made.zeros.numpy())
                steps = None if made.steps is None else made.steps.numpy()
                writers[one.item].write(name, first, Rows(*arrays, steps))

        with ThreadPoolExecutor(min(self.threads, GPTQ_THREADS)) as pool:
            list(pool.map(work, range(0, rows, step)))
        torch.set_num_threads(self.threads)


class _Watched:
    """Hessians of the linear layers of a decoder layer, {} for None, while it runs."""

    def __init__(self, layer: Module | None) -> None:
        self._hessians: dict[str, Hessian] = {}
        self._hooks = []
        if layer is None:
            return
        for name in LINEAR:
            module = layer.get_submodule(name)
            hessian = self._hessians[name] = Hessian(module.in_features)
            hook = lambda _, inputs, hessian=hessian: hessian.add(inputs[0])  # noqa: E731
            self._hooks.append(module.register_forward_pre_hook(hook))

    def __enter__(self) -> dict[str, Hessian]:
        return self._hessians

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()


@dataclass(frozen=True)
class States:
    """The states before a layer, kept in a folder so that a run can go on from there."""

    folder: Path

    def save(self, states: Tensor, layer: int) -> None:
        """Keep the states before this layer instead of those before the last. Raises OSError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        new = self.folder / "new"
        with new.open("wb") as file:
            np.save(file, states.numpy())
        os.replace(new, self._path(layer))
        for path in self.folder.glob("states-*.npy"):
            if path != self._path(layer):
                path.unlink()

    def load(self, states: Tensor, layer: int) -> bool:
        """Fill `states` with those before this layer; return whether they are there."""
        try:
            kept = np.load(self._path(layer), mmap_mode="r")
        except (OSError, ValueError):
            return False
        if kept.shape != tuple(states.shape) or kept.dtype != np.float32:
            return False
        states.copy_(torch.from_numpy(np.array(kept)))
        return True

    def _path(self, layer: int) -> Path:
        return self.folder / f"states-{layer:05d}.npy"
