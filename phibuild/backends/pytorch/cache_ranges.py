"""How large the keys and values of every layer are over a text, by which a quantized KV cache gets
scales that are fixed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from phibuild.worker.architecture import Architecture
from phibuild.worker.protocol import WorkerError
from phibuild.worker.requests import CACHE_RANGES


class CacheRanges:
    """Largest magnitudes by layer, KV head and channel. Keys are cached after their rotation, which
    turns pairs of channels (i, i + rotary_dim / 2) by an angle of their position: of a pair counts
    its length, times the scale of cos and sin, which holds at every position, not at those of the
    text alone (`_pair_envelope` of onnxruntime-genai's kv_cache_calibration.py)."""

    def __init__(self, arch: Architecture) -> None:
        self._arch = arch
        self._keys = torch.zeros(arch.layers, arch.kv_heads, arch.head_dim)
        self._values = torch.zeros_like(self._keys)
        self._hook: RemovableHandle | None = None

    def watch(self, number: int, layer: torch.nn.Module) -> None:
        """Take the keys and values of this decoder layer from now on, and of no other."""
        if self._hook:
            self._hook.remove()

        def take(_module: object, _inputs: object, packed: Tensor) -> None:
            arch = self._arch
            heads = packed.flatten(0, -2).unflatten(-1, (-1, arch.head_dim))
            _, keys, values = heads.split((arch.heads, arch.kv_heads, arch.kv_heads), dim=1)
            _raise(self._keys[number], self._envelope(keys))
            _raise(self._values[number], values.abs())

        self._hook = layer.get_submodule("self_attn.qkv_proj").register_forward_hook(take)

    def _envelope(self, keys: Tensor) -> Tensor:
        """Return the magnitudes of keys [T, heads, head_dim] at whatever position."""
        rotated = self._arch.rotary_dim
        first, second, rest = keys.split(
            (rotated // 2, rotated // 2, self._arch.head_dim - rotated), dim=-1
        )
        lengths = torch.hypot(first, second) * self._arch.attention_factor
        return torch.cat((lengths, lengths, rest.abs()), dim=-1)

    def write(self, folder: Path) -> None:
        """Write CACHE_RANGES. Raises WorkerError if a key or value is not finite in fp32."""
        ranges = torch.stack((self._keys, self._values))
        if not torch.isfinite(ranges).all():
            raise WorkerError("keys or values hold NaN or infinity in fp32")
        np.save(folder / CACHE_RANGES, ranges.numpy())


def _raise(largest: Tensor, found: Tensor) -> None:
    torch.maximum(largest, found.amax(0), out=largest)
