"""Quantize a checkpoint as ExecuTorch's exporter does, and compare; in the vendor's environment.

`python executorch_vendor.py SOURCE FOLDER` finds FOLDER/<name>/model.pte, reads it by ExecuTorch's
own reader, and prints as JSON, by name: `weights`, how many the exporter would have; `numbers`, the
largest share of a weight's bytes that are others; `scales`, by how much the scales of a weight are
others at most, and `typical`, in 99 of 100 of its rows or blocks, both of the right ones.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

EMBEDDING = "embedding"
QUANTIZED = {"int4-b32": ("8da4w", 32), "int4-b64": ("8da4w", 64), "int4-b128": ("8da4w", 128),
             "int8": ("8da8w", 0), "fp32": (None, 0)}  # fmt: skip


def parts(source: Path) -> Iterator[tuple[str, Any]]:
    """Yield names and weights [out, in], fp32, of what the exporter has as layers."""
    from safetensors.torch import load_file

    config = json.loads((source / "config.json").read_text("utf-8"))
    width = config["hidden_size"] // config["num_attention_heads"]
    kv = config["num_key_value_heads"] * width
    heads = config["num_attention_heads"] * width
    weights: dict[str, Any] = {}
    for path in sorted(source.glob("*.safetensors")):
        weights |= load_file(str(path))
    for name, weight in weights.items():
        if weight.ndim < 2:
            continue
        sizes = {"qkv_proj": [heads, kv, kv], "gate_up_proj": [config["intermediate_size"]] * 2}
        fused = name.split(".")[-2]
        names = {
            "qkv_proj": ["q_proj", "k_proj", "v_proj"],
            "gate_up_proj": ["gate_proj", "up_proj"],
        }
        if fused in names:
            split = weight.float().split(sizes[fused])
            for part, rows in zip(names[fused], split, strict=True):
                yield name.replace(fused, part), rows.contiguous()
        elif name != "model.embed_tokens.weight" or config.get("tie_word_embeddings"):
            yield name, weight.float()
        if name == "model.embed_tokens.weight":
            yield EMBEDDING, weight.float()


def expected(weight: Any, name: str, mode: str | None, group_size: int) -> tuple[Any, Any]:
    """Return what the exporter stores of a weight: numbers, and scales fp32."""
    import torch
    from executorch.backends.xnnpack.operators.node_visitor import NodeVisitor
    from executorch.examples.models.llama.source_transformation import quantize

    if mode is None:
        return weight.numpy(), np.ones(1, np.float32)
    if name == EMBEDDING:
        module = torch.nn.Sequential(torch.nn.Embedding.from_pretrained(weight))
        state = quantize.EmbeddingQuantHandler(module, group_size=0).create_quantized_state_dict()
        return state["0.weight"].numpy(), state["0.scales"].numpy()
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    module = torch.nn.Sequential(layer)
    quantize.quantize(module, mode, group_size=group_size)
    numbers, scales = module[0].weight.qdata, module[0].weight.scale
    if mode == "8da4w":  # as XNNPACK's delegate is given them
        numbers, scales = NodeVisitor.convert_to_qc4w(numbers), scales.to(torch.bfloat16).float()
    return numbers.contiguous().numpy(), scales.contiguous().numpy()


class Program:
    """A program, by ExecuTorch's own reader."""

    def __init__(self, path: Path) -> None:
        from executorch.exir._serialize._program import deserialize_pte_binary

        read = deserialize_pte_binary(path.read_bytes())
        self._store = read.named_data
        self._constants = read.program.constant_buffer

    def weight(self, name: str, mode: str | None) -> tuple[Any, Any]:
        """Return numbers and scales of a weight, flat."""
        if name == EMBEDDING:  # the first of what kernels read
            numbers, scales = (bytes(self._constants[number].storage) for number in (1, 2))
        else:
            numbers = self._named(name)
            scales = self._named(f"{name}.scales") if mode else b""
        if mode is None:
            return np.frombuffer(numbers, np.float32), np.ones(1, np.float32)
        if mode == "8da4w" and name != EMBEDDING:
            bits = np.frombuffer(scales, np.uint16).astype(np.uint32) << 16
            return np.frombuffer(numbers, np.uint8), bits.view(np.float32)
        return np.frombuffer(numbers, np.int8), np.frombuffer(scales, np.float32)

    def _named(self, name: str) -> bytes:
        return bytes(self._store.buffers[self._store.pte_data[name].buffer_index])


def main() -> None:
    source, folder = map(Path, sys.argv[1:])
    result = {}
    for name, (mode, group_size) in QUANTIZED.items():
        path = folder / name / "model.pte"
        if not path.is_file():
            continue
        program = Program(path)
        rows = []
        for weight, values in parts(source):
            right = [part.reshape(-1) for part in expected(values, weight, mode, group_size)]
            ours = program.weight(weight, mode)
            assert [len(part) for part in ours] == [len(part) for part in right], weight
            off = np.abs(ours[1] - right[1]) / right[1]
            rows.append(((ours[0] != right[0]).mean(), off.max(), np.quantile(off, 0.99)))
        numbers, scales, typical = (float(max(column)) for column in zip(*rows, strict=True))
        result[name] = {
            "weights": len(rows), "numbers": numbers, "scales": scales, "typical": typical
        }  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main()
