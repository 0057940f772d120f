"""An MLX artifact judged by its weights as float32, which are read as they are needed.

mlx-lm's model computes, but for the products with weights: threads of this module read a few rows
of the matrix each and multiply them by numpy's BLAS. MLX's own CPU kernels take some thirty times
as long, for float32 as for packed weights; `native` is the model with those.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model

from phibuild.backends.mlx.malloc import keep_freed
from phibuild.backends.mlx.native import NativeRuntime
from phibuild.backends.mlx.stored_weights import MlxWeights, StoredMatrix
from phibuild.worker.interface import Logits, Tokens

_BLOCK_WEIGHTS = 1 << 20  # dequantized and multiplied by a thread at a time
_KEPT_BYTES = 64 << 20  # of a thread: more than such a block and its parts


class MlxRuntime:
    """The artifact's weights in float32; nothing of them but the norms stays in memory."""

    def __init__(self, folder: Path, threads: int) -> None:
        keep_freed(_KEPT_BYTES)
        mx.set_default_device(mx.cpu)
        mx.set_cache_limit(0)
        self._folder = folder
        checked, config = load_model(folder, lazy=True)  # mlx-lm's own check of names and shapes
        self._model = type(checked)(checked.args)
        weights = MlxWeights(folder, config)
        executor = ThreadPoolExecutor(threads)
        for path, module in self._model.named_modules():
            match module:
                case nn.Linear():
                    _replace(self._model, path, Projection(weights.matrix(path), executor))
                case nn.Embedding():
                    _replace(self._model, path, Embedding(weights.matrix(path), executor))
                case nn.RMSNorm():
                    module.weight = mx.array(weights.vector(path))
        self._cache = make_prompt_cache(self._model)

    def logits(self, ids: Tokens) -> Logits:
        """Return the logits [T, V] of one pass over `ids` [T] from an empty cache."""
        self._cache = make_prompt_cache(self._model)
        return self.extend(ids)

    def extend(self, ids: Tokens) -> Logits:
        """Return the logits [T, V] of `ids` [T] appended to the cache that is there."""
        return np.array(self._model(mx.array(ids)[None], cache=self._cache)[0])

    def native(self) -> NativeRuntime:
        """Return the artifact in mlx-lm's own kernels."""
        return NativeRuntime(self._folder)


class Projection:
    """In the place of nn.Linear."""

    def __init__(self, matrix: StoredMatrix, executor: ThreadPoolExecutor) -> None:
        self._matrix, self._executor = matrix, executor

    def __call__(self, x: mx.array) -> mx.array:
        """Return x [..., width] times the transposed matrix: [..., rows]."""
        matrix = self._matrix
        columns = np.array(x).reshape(-1, matrix.width).T
        product = np.empty((matrix.rows, columns.shape[1]), np.float32)
        step = max(1, _BLOCK_WEIGHTS // matrix.width)

        def multiply(start: int) -> None:
            stop = min(start + step, matrix.rows)
            np.matmul(matrix.read(start, stop), columns, out=product[start:stop])

        starts = range(0, matrix.rows, step)
        # A thread that is woken for a single block takes as long as a small block.
        list(map(multiply, starts) if len(starts) == 1 else self._executor.map(multiply, starts))
        return mx.array(np.ascontiguousarray(product.T).reshape(*x.shape[:-1], matrix.rows))


class Embedding:
    """In the place of nn.Embedding."""

    def __init__(self, matrix: StoredMatrix, executor: ThreadPoolExecutor) -> None:
        self._matrix = matrix
        self.as_linear = Projection(matrix, executor)  # of a tied model

    def __call__(self, ids: mx.array) -> mx.array:
        rows = [self._matrix.read(token, token + 1) for token in np.array(ids).ravel().tolist()]
        return mx.array(np.concatenate(rows).reshape(*ids.shape, -1))


def _replace(model: nn.Module, path: str, module: Projection | Embedding) -> None:
    """Set the module at a dotted path such as model.layers.3.mlp.down_proj."""
    *parents, last = path.split(".")
    owner = model
    for name in parents:
        owner = owner[int(name)] if name.isdigit() else getattr(owner, name)
    setattr(owner, last, module)
