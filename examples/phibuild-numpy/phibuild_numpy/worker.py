"""The backend inside its toolchain. NAME.npy is a tensor; NAME.scale.npy goes with int8 ones."""

from collections import Counter
from pathlib import Path

import numpy as np

from phibuild.worker.building import build_all
from phibuild.worker.costs import Output
from phibuild.worker.floats import Floats
from phibuild.worker.interface import Tokens
from phibuild.worker.plain_builder import PlainBuilder
from phibuild.worker.plain_runtime import PlainRuntime
from phibuild.worker.protocol import Contents, Report, WorkerError
from phibuild.worker.requests import BuildRequest
from phibuild.worker.safetensors import TensorInfo

REFERENCE = "logits"  # the runtime chooses between rope factors as the original does


def build(request: BuildRequest, report: Report) -> None:
    build_all(request, report, lambda: NumpyBuilder(inspect))


def inspect(folder: Path) -> Contents:
    arrays = {path.stem: np.load(path, mmap_mode="r") for path in folder.glob("*.npy")}
    types = Counter[str]()
    for name, array in arrays.items():
        types[array.dtype.name] += 0 if name.endswith(".scale") else array.size
    return {"types": dict(types), "weight_bytes": sum(one.nbytes for one in arrays.values())}


def prepare() -> None:
    """Nothing is left to be imported before an artifact is loaded."""


def load(folder: Path, threads: int) -> "NumpyRuntime":
    return NumpyRuntime(folder)  # the environment tells numpy's BLAS of the threads


class NumpyBuilder(PlainBuilder):
    def write(self, output: Output, tensor: TensorInfo, first: int, rows: Floats) -> None:
        path = output.folder / f"{tensor.name}.npy"
        made: np.ndarray = rows
        clip = output.request["variant"]["options"].get("clip")
        if clip and rows.ndim == 2:
            scale = np.abs(rows).max(axis=1, keepdims=True) * np.float32(clip / 127)
            if not np.isfinite(scale).all():
                raise WorkerError(f"{tensor.name}: NaN and infinity have no int8 code")
            append(path.with_suffix(".scale.npy"), scale, (tensor.shape[0], 1))
            made = np.rint(rows / np.where(scale, scale, 1)).clip(-127, 127).astype(np.int8)
        append(path, made, tensor.shape)


def append(path: Path, rows: np.ndarray, shape: tuple[int, ...]) -> None:
    """Add rows to an array's file, which begins with the type and shape of the whole."""
    with path.open("ab") as file:
        if not file.tell():
            header = {"descr": rows.dtype.str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
        file.write(rows.tobytes())


class NumpyRuntime(PlainRuntime):
    """Phi-3 in float32. Keys are cached before they are rotated: where a text outgrows the original
    context, the rope factors of all of them change."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.arrays = {path.stem: np.load(path, mmap_mode="r") for path in folder.glob("*.npy")}

    def reset(self) -> None:
        self.cache: dict[int, Floats] = {}  # layer -> [tokens, heads of keys and values, head_dim]

    def extend(self, ids: Tokens) -> Floats:
        x = self.rows("model.embed_tokens", ids)
        for layer in range(self.arch.layers):
            at = f"model.layers.{layer}"
            qkv = self.times(self.norm(x, f"{at}.input_layernorm"), f"{at}.self_attn.qkv_proj")
            x = x + self.times(self.attend(qkv, layer), f"{at}.self_attn.o_proj")
            y = self.norm(x, f"{at}.post_attention_layernorm")
            gate, up = np.split(self.times(y, f"{at}.mlp.gate_up_proj"), 2, axis=1)
            x = x + self.times(gate / (1 + np.exp(-gate)) * up, f"{at}.mlp.down_proj")
        head = "model.embed_tokens" if self.arch.tied else "lm_head"
        return self.times(self.norm(x, "model.norm"), head)

    def attend(self, qkv: Floats, layer: int) -> Floats:
        arch, count = self.arch, len(qkv)
        query, new = np.split(qkv.reshape(count, -1, arch.head_dim), [arch.heads], axis=1)
        past = self.cache[layer] = np.concatenate([self.cache.get(layer, new[:0]), new])
        key, value = np.split(past, 2, axis=1)
        query, key = self.rotate(query, len(past)), self.rotate(key, len(past))
        ago = np.arange(len(past))[-count:, None] - np.arange(len(past))
        unseen = (ago < 0) | (ago >= (arch.sliding_window or len(past)))
        for head in range(arch.heads):
            of = head * arch.kv_heads // arch.heads
            scores = query[:, head] @ key[:, of].T / np.float32(arch.head_dim**0.5)
            scores[unseen] = -np.inf
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            query[:, head] = weights @ value[:, of] / weights.sum(axis=1, keepdims=True)
        return query.reshape(count, -1)

    def rotate(self, heads: Floats, total: int) -> Floats:
        """Rotate the last of `total` tokens: elements i and i + rotary_dim / 2 are a pair."""
        rope, half = self.arch.rope, self.arch.rotary_dim // 2
        factors = rope.long if total > self.arch.original_max_positions else rope.short
        period = rope.theta ** (np.arange(half, dtype=np.float32) / half)
        turn = 1 / (np.array(factors or 1, np.float32) * period)
        angle = np.arange(total, dtype=np.float32)[-len(heads) :, None, None] * turn
        pairs = (heads[..., :half] + 1j * heads[..., half : 2 * half]) * np.exp(1j * angle)
        pairs *= self.arch.attention_factor
        return np.concatenate([pairs.real, pairs.imag, heads[..., 2 * half :]], axis=-1)

    def norm(self, x: Floats, name: str) -> Floats:
        scale = np.sqrt((x * x).mean(axis=1, keepdims=True) + self.arch.norm_eps)
        return np.asarray(x / scale * self.arrays[f"{name}.weight"])

    def times(self, x: Floats, name: str) -> Floats:
        """Return x by the transposed weight, of which 1024 rows are widened at a time."""
        starts = range(0, len(self.arrays[f"{name}.weight"]), 1024)
        parts = [x @ self.rows(name, slice(start, start + 1024)).T for start in starts]
        return np.concatenate(parts, axis=1)

    def rows(self, name: str, index: slice | Tokens) -> Floats:
        rows = np.asarray(self.arrays[f"{name}.weight"][index], np.float32)
        scale = self.arrays.get(f"{name}.weight.scale")
        return rows if scale is None else rows * scale[index]
