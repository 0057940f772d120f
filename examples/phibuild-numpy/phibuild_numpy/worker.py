"""The backend inside its toolchain: arrays are written, read back, and put to work."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from phibuild.worker.architecture import Architecture
from phibuild.worker.judge import Logits, Tokens
from phibuild.worker.plain_runtime import PlainRuntime, add_tokenizer
from phibuild.worker.protocol import Report, WorkerError
from phibuild.worker.safetensors import TensorInfo, read_checkpoint
from phibuild.worker.tokenizer_check import read_facts

REFERENCE = "logits"  # the runtime chooses between rope factors as the original does
TYPES = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}


def build(request: dict[str, Any], report: Report) -> None:
    source, facts = Path(request["source"]), read_facts(Path(request["facts"]))
    arch, tensors = Architecture.from_json(request["architecture"]), read_checkpoint(source)
    for entry in request["items"]:
        item, folder = entry["item"], Path(entry["output"])
        try:
            report.stage("converting", item=item)
            for name, _ in arch.tensors():
                write(tensors[name], folder, entry["variant"]["options"].get("clip"))
            (folder / "model.json").write_text(json.dumps(arch.to_json()), encoding="utf-8")
            report.item(item, inspect(folder) | {"tokenizer": add_tokenizer(source, folder, facts)})
        except Exception as error:  # the other items are built
            report.failed(item, error)


def write(tensor: TensorInfo, folder: Path, clip: float | None) -> None:
    """Write NAME.npy some rows at a time; with a `clip` a matrix is int8, with NAME.scale.npy."""
    stored = np.memmap(tensor.path, TYPES[tensor.dtype], "r", tensor.offset, tensor.shape)
    int8, step, scales = clip and stored.ndim == 2, max(1, (len(stored) << 20) // stored.size), []
    header = {"descr": "|i1" if int8 else "<f4", "fortran_order": False, "shape": tensor.shape}
    with (folder / f"{tensor.name}.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, len(stored), step):
            rows = stored[start : start + step]
            if tensor.dtype == "BF16":  # the upper half of a float32
                rows = np.left_shift(rows, 16, dtype=np.uint32).view(np.float32)
            rows = rows.astype(np.float32)
            if int8:
                scales.append(np.abs(rows).max(axis=1, keepdims=True) * clip / 127)
                rows = np.rint(rows / np.where(scales[-1], scales[-1], 1)).clip(-127, 127)
                if not np.isfinite(rows).all():
                    raise WorkerError(f"{tensor.name}: NaN and infinity have no int8 code")
            file.write(rows.astype(np.int8 if int8 else np.float32).tobytes())
    if int8:
        np.save(folder / f"{tensor.name}.scale.npy", np.concatenate(scales))


def inspect(folder: Path) -> dict[str, Any]:
    arrays = {path.stem: np.load(path, mmap_mode="r") for path in folder.glob("*.npy")}
    types = Counter[str]()
    for name, array in arrays.items():
        types[array.dtype.name] += 0 if name.endswith(".scale") else array.size
    return {"types": dict(types), "weight_bytes": sum(one.nbytes for one in arrays.values())}


class NumpyRuntime(PlainRuntime):
    """Phi-3 in float32; weights stay in their files. Keys are cached before they are rotated:
    a text that outgrows the original context changes the rope factors of all."""

    def __init__(self, folder: Path, threads: int) -> None:  # numpy's BLAS is told by phibuild
        super().__init__(folder)
        self.arch = Architecture.from_json(json.loads((folder / "model.json").read_text()))
        self.arrays = {path.stem: np.load(path, mmap_mode="r") for path in folder.glob("*.npy")}

    def reset(self) -> None:
        self.cache: dict[int, Logits] = {}  # layer -> [tokens, heads of keys and values, head_dim]

    def extend(self, ids: Tokens) -> Logits:
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

    def attend(self, qkv: Logits, layer: int) -> Logits:
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

    def rotate(self, heads: Logits, total: int) -> Logits:
        """Rotate the last of `total` tokens: elements i and i + rotary_dim / 2 are a pair."""
        rope, half = self.arch.rope, self.arch.rotary_dim // 2
        factors = rope.long if total > self.arch.original_max_positions else rope.short
        period = rope.theta ** (np.arange(half, dtype=np.float32) / half)
        turn = 1 / (np.array(factors or 1, np.float32) * period)
        angle = np.arange(total, dtype=np.float32)[-len(heads) :, None, None] * turn
        pairs = (heads[..., :half] + 1j * heads[..., half : 2 * half]) * np.exp(1j * angle)
        pairs *= self.arch.attention_factor
        return np.concatenate([pairs.real, pairs.imag, heads[..., 2 * half :]], axis=-1)

    def norm(self, x: Logits, name: str) -> Logits:
        scale = np.sqrt((x * x).mean(axis=1, keepdims=True) + self.arch.norm_eps)
        return np.asarray(x / scale * self.arrays[f"{name}.weight"])

    def times(self, x: Logits, name: str) -> Logits:
        """Return x by the transposed weight, of which 1024 rows are widened at a time."""
        starts = range(0, len(self.arrays[f"{name}.weight"]), 1024)
        parts = [x @ self.rows(name, slice(start, start + 1024)).T for start in starts]
        return np.concatenate(parts, axis=1)

    def rows(self, name: str, index: slice | Tokens) -> Logits:
        rows = np.asarray(self.arrays[f"{name}.weight"][index], np.float32)
        scale = self.arrays.get(f"{name}.weight.scale")
        return rows if scale is None else rows * scale[index]


load = NumpyRuntime
