"""Seeded random checkpoints in the three shapes of Phi, small and the same bytes on every machine.

The weights come from an integer hash of (seed, tensor name, element index), not from a library's
random stream, so they depend neither on numpy's version nor on which other tensors exist: the same
tensor has the same values in every dtype, shard count and layer count.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, cast

import numpy as np
import numpy.typing as npt

from phibuild.worker.architecture import Architecture, read_architecture

Shape = Literal["phi3", "phi4mini", "phi4"]
DType = Literal["bf16", "fp16", "fp32"]

ROOT = Path(__file__).resolve().parents[2]
TOKENIZERS: dict[Shape, Path] = {
    "phi3": ROOT / "phibuild" / "data" / "phi3-tiny-trained",
    "phi4mini": ROOT / "tests" / "data" / "tokenizers" / "phi4mini",
    "phi4": ROOT / "tests" / "data" / "tokenizers" / "phi4",
}
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",  # only phi3 has one
    "tokenizer_config.json",
    "chat_template.jinja",
)

WEIGHT_SCALE = 0.05  # standard deviation of every matrix
NORM_SCALE = 0.05  # standard deviation of a norm's weights around 1

_TORCH_DTYPE: dict[DType, str] = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
_SAFETENSORS_DTYPE: dict[DType, str] = {"bf16": "BF16", "fp16": "F16", "fp32": "F32"}

_LICENSE = """MIT License

Copyright (c) the phibuild authors

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""


def make_checkpoint(
    folder: Path,
    shape: Shape,
    *,
    dtype: DType = "bf16",
    shards: int = 1,
    seed: int = 0,
    layers: int = 4,
    **config_overrides: object,
) -> Path:
    """Write a checkpoint into `folder` and return it.

    `config_overrides` replace keys of config.json before the tensors are made, so tensor shapes,
    tied embeddings and the default LongRoPE factor lists follow them. With more than one shard the
    tensors are split in their order into that many files beside an index. Raises ValueError when
    there are fewer tensors than shards, and FileExistsError when the folder holds weights already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if next(folder.glob("model*.safetensors*"), None) is not None:
        raise FileExistsError(f"{folder} holds a checkpoint already")
    config = _config(shape, dtype, layers, config_overrides)
    tensors = list(tensor_shapes(config))
    if not 1 <= shards <= len(tensors):
        raise ValueError(f"{shards} shards for {len(tensors)} tensors")

    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", _generation_config(shape, config))
    for name in TOKENIZER_FILES:
        source = TOKENIZERS[shape] / name
        if source.exists():
            shutil.copyfile(source, folder / name)
    (folder / "LICENSE").write_bytes(_LICENSE.encode())

    if shards == 1:
        _write_safetensors(folder / "model.safetensors", tensors, dtype, seed)
        return folder
    weight_map: dict[str, str] = {}
    total = 0
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        first, last = (len(tensors) * edge // shards for edge in (shard, shard + 1))
        total += _write_safetensors(folder / file, tensors[first:last], dtype, seed)
        weight_map.update({name: file for name, _ in tensors[first:last]})
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    _write_json(folder / "model.safetensors.index.json", index)
    return folder


def architecture(folder: Path) -> Architecture:
    """Return the architecture that a folder's config.json means."""
    return read_architecture(json.loads((folder / "config.json").read_text(encoding="utf-8")))


def tensor_shapes(config: dict[str, object]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor that a Phi3ForCausalLM of this config.json has, in order."""
    hidden = _integer(config, "hidden_size")
    inner = _integer(config, "intermediate_size")
    heads = _integer(config, "num_attention_heads")
    kv_heads = _integer(config, "num_key_value_heads")
    vocabulary = _integer(config, "vocab_size")
    head = _head_size(config)
    yield "model.embed_tokens.weight", (vocabulary, hidden)
    for layer in range(_integer(config, "num_hidden_layers")):
        prefix = f"model.layers.{layer}."
        yield prefix + "input_layernorm.weight", (hidden,)
        yield prefix + "self_attn.qkv_proj.weight", ((heads + 2 * kv_heads) * head, hidden)
        yield prefix + "self_attn.o_proj.weight", (hidden, heads * head)
        yield prefix + "post_attention_layernorm.weight", (hidden,)
        yield prefix + "mlp.gate_up_proj.weight", (2 * inner, hidden)
        yield prefix + "mlp.down_proj.weight", (hidden, inner)
    yield "model.norm.weight", (hidden,)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (vocabulary, hidden)


def tensor_values(name: str, shape: tuple[int, ...], seed: int) -> npt.NDArray[np.float32]:
    """The float32 values of one tensor, before they are rounded to a checkpoint's dtype."""
    normal = _normal(f"{seed}:{name}", math.prod(shape))
    values = 1.0 + NORM_SCALE * normal if name.endswith("norm.weight") else WEIGHT_SCALE * normal
    return values.astype(np.float32).reshape(shape)


def to_bytes(values: npt.NDArray[np.float32], dtype: DType) -> bytes:
    """Little-endian bytes of the values in the dtype, rounded to nearest, ties to even."""
    if dtype == "fp32":
        return values.astype("<f4").tobytes()
    if dtype == "fp16":
        return values.astype("<f2").tobytes()
    bits = values.astype("<f4").view("<u4").astype(np.uint32)
    even = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = (bits + np.uint32(0x7FFF) + even) >> np.uint32(16)
    return rounded.astype("<u2").tobytes()


def _normal(stream: str, count: int) -> npt.NDArray[np.float64]:
    """`count` near-normal numbers, mean 0 and variance 1: each sums four 16-bit uniforms.

    Element i is splitmix64 of the stream's key advanced i + 1 steps. Exact in integers up to the
    last step, one float64 multiplication.
    """
    key = int.from_bytes(hashlib.sha256(stream.encode()).digest()[:8], "little")
    z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z += np.uint64(key)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    total = np.zeros(count, dtype=np.int64)
    for shift in (0, 16, 32, 48):
        total += ((z >> np.uint64(shift)) & np.uint64(0xFFFF)).astype(np.int64)
    deviation = math.sqrt((65536**2 - 1) / 3)
    return (total - 2 * 65535).astype(np.float64) * (1.0 / deviation)


def _write_safetensors(
    path: Path, tensors: list[tuple[str, tuple[int, ...]]], dtype: DType, seed: int
) -> int:
    """Write one safetensors file and return the size of its data."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    size = 0
    for name, shape in tensors:
        end = size + math.prod(shape) * (4 if dtype == "fp32" else 2)
        header[name] = {
            "dtype": _SAFETENSORS_DTYPE[dtype],
            "shape": list(shape),
            "data_offsets": [size, end],
        }
        size = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in tensors:
            file.write(to_bytes(tensor_values(name, shape, seed), dtype))
    return size


def _config(
    shape: Shape, dtype: DType, layers: int, overrides: dict[str, object]
) -> dict[str, object]:
    """config.json with the keys that the published checkpoint of this shape carries."""
    config: dict[str, object] = {
        "architectures": ["Phi3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "embd_pdrop": 0.0,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "model_type": "phi3",
        "num_hidden_layers": layers,
        "resid_pdrop": 0.0,
        "rms_norm_eps": 1e-05,
        "torch_dtype": _TORCH_DTYPE[dtype],
        "use_cache": True,
    }
    if shape == "phi3":
        config |= {
            "_name_or_path": "Phi-3.5-mini-instruct",
            "bos_token_id": 1,
            "eos_token_id": 2048,
            "hidden_size": 256,
            "intermediate_size": 512,
            "max_position_embeddings": 131072,
            "num_attention_heads": 8,
            "num_key_value_heads": 8,
            "original_max_position_embeddings": 4096,
            "pad_token_id": 2048,
            "rope_theta": 10000.0,
            "sliding_window": 262144,
            "tie_word_embeddings": False,
            "transformers_version": "4.43.3",
            "vocab_size": 2112,
        }
    elif shape == "phi4mini":
        config |= {
            "_name_or_path": "Phi-4-mini-instruct",
            "bos_token_id": 1599,
            "eos_token_id": 1599,
            "full_attn_mod": 1,
            "hidden_size": 384,
            "intermediate_size": 768,
            "interpolate_factor": 1,
            "lm_head_bias": False,
            "max_position_embeddings": 131072,
            "mlp_bias": False,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "original_max_position_embeddings": 4096,
            "pad_token_id": 1599,
            "partial_rotary_factor": 0.75,
            "rope_theta": 10000.0,
            "sliding_window": 262144,
            "tie_word_embeddings": True,
            "transformers_version": "4.45.0",
            "vocab_size": 1664,
        }
    else:
        config |= {
            "_name_or_path": "phi4",
            "bos_token_id": 1441,
            "eos_token_id": 1449,
            "hidden_size": 512,
            "intermediate_size": 1024,
            "max_position_embeddings": 16384,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "original_max_position_embeddings": 16384,
            "pad_token_id": 1533,
            "rope_scaling": None,
            "rope_theta": 250000,
            "sliding_window": None,
            "tie_word_embeddings": False,
            "transformers_version": "4.47.0",
            "vocab_size": 1600,
        }
    config |= overrides
    if "rope_scaling" not in config:
        rotary = int(_head_size(config) * cast(float, config.get("partial_rotary_factor", 1.0)))
        config["rope_scaling"] = {
            "long_factor": _ramp(1.08, 64.0, rotary // 2),
            "short_factor": _ramp(1.0, 2.8, rotary // 2),
            "type": "longrope",
        }
    return dict(sorted(config.items()))


def _generation_config(shape: Shape, config: dict[str, object]) -> dict[str, object]:
    """generation_config.json: more tokens stop generation than config.json's one."""
    stops = {"phi3": [2051, 2049, 2048], "phi4mini": [1620, 1599], "phi4": [1441, 1449]}
    return {
        "_from_model_config": True,
        "bos_token_id": config["bos_token_id"],
        "eos_token_id": stops[shape],
        "pad_token_id": config["pad_token_id"],
        "transformers_version": config["transformers_version"],
    }


def _ramp(first: float, last: float, count: int) -> list[float]:
    """`count` numbers that rise quadratically from first to last."""
    steps = max(count - 1, 1)
    return [round(first + (last - first) * (i / steps) ** 2, 4) for i in range(count)]


def _integer(config: dict[str, object], key: str) -> int:
    value = config[key]
    if not isinstance(value, int):
        raise TypeError(f"config.json: {key} is {value!r}, not an integer")
    return value


def _head_size(config: dict[str, object]) -> int:
    if config.get("head_dim") is not None:
        return _integer(config, "head_dim")
    return _integer(config, "hidden_size") // _integer(config, "num_attention_heads")


def _write_json(path: Path, document: dict[str, object]) -> None:
    """Write JSON with line feeds on every system."""
    path.write_bytes((json.dumps(document, indent=2) + "\n").encode())
