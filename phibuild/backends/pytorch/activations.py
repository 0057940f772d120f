"""How large the inputs of every linear layer are, what llama.cpp's importance matrix is made of,
and the keys and values of every layer."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from phibuild.backends.pytorch.cache_ranges import CacheRanges
from phibuild.backends.pytorch.layers import through_layers
from phibuild.backends.pytorch.layerwise import LayerwisePhi3
from phibuild.backends.pytorch.threads import use_threads
from phibuild.backends.pytorch.windows import Windows, read_text
from phibuild.worker.architecture import Architecture
from phibuild.worker.protocol import Report, WorkerError
from phibuild.worker.requests import ActivationsRequest, QuantizeRequest, SensitivityRequest
from phibuild.worker.safetensors import SafetensorsWriter

_PACKAGES = ("torch", "transformers", "tokenizers", "numpy")


def activations(request: ActivationsRequest, report: Report) -> None:
    """Write activations.safetensors, meta.json and what CacheRanges writes into the empty folder
    `output`.

    The fp32 original sees up to `tokens` tokens of `text` in chunks of `chunk_tokens`, evenly
    spaced, BOS in the place of the first token if the tokenizer adds one, as llama-imatrix does.
    For every linear layer except lm_head, the file has F32 [columns] under the name of its weight:
    the sum over all tokens of the squares of its inputs, added up in float64. meta.json:
    {"tokens", "chunks", "seconds", "versions"}. A text that is too short or does not suit the
    model fails the item.
    """
    try:
        result = _activations(request, report)
    except Exception as error:  # whatever Transformers raises is this item's failure
        report.failed(request["item"], error)
    else:
        report.item(request["item"], result)


def _activations(request: ActivationsRequest, report: Report) -> Mapping[str, object]:
    started = time.perf_counter()
    source, output, item = Path(request["source"]), Path(request["output"]), request["item"]
    use_threads(request["threads"])

    report.stage("tokenizing", item=item)
    arch = Architecture.from_json(request["architecture"])
    chunks = choose_chunks(request, arch)
    report.stage("loading", item=item)
    with torch.inference_mode():
        sums, ranges = _SquaredInputs(), CacheRanges(arch)
        model = LayerwisePhi3(source, arch)
        states = model.embed(torch.from_numpy(chunks.astype(np.int64)))
        rotation = model.positions(0, states.shape[1])

        def enter(number: int, layer: torch.nn.Module) -> None:
            sums.watch(number, layer)
            ranges.watch(number, layer)

        for layer in through_layers(model, [states], [rotation], enter):
            report.stage("activations", (layer + 1) / model.config.num_hidden_layers, item)
    sums.write(output)
    ranges.write(output)
    result = {
        "tokens": int(chunks.size),
        "chunks": len(chunks),
        "seconds": time.perf_counter() - started,
        "versions": {name: version(name) for name in _PACKAGES},
    }
    (output / "meta.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def choose_chunks(
    request: ActivationsRequest | QuantizeRequest | SensitivityRequest, arch: Architecture
) -> Windows:
    """Return chunks of ids [C, chunk_tokens], as many whole ones as `tokens` and the text allow.

    Raises WorkerError if not even one fits, or if the text does not suit the model.
    """
    text = Path(request["text"])
    tokens, chunk_tokens = request["tokens"], request["chunk_tokens"]
    if tokens < chunk_tokens:
        raise WorkerError(f"{tokens:,} tokens are less than one chunk of {chunk_tokens:,}")
    tokenized = read_text(Path(request["source"]), text, arch.vocab_size, "calibration")
    chunks = tokenized.windows(tokens // chunk_tokens, chunk_tokens)
    if not len(chunks):
        raise WorkerError(
            f"the calibration text {text.name} has {len(tokenized.ids):,} tokens, a chunk needs "
            f"{tokenized.room(chunk_tokens):,}; give a longer text"
        )
    return chunks


class _SquaredInputs:
    """Sums of the squared inputs of linear layers, by the names of their weights."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._hooks: list[RemovableHandle] = []

    def watch(self, number: int, layer: torch.nn.Module) -> None:
        """Add up the inputs of this decoder layer's linear layers from now on, and of no other's:
        the same module serves for several layers."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        for name, module in layer.named_modules():
            if isinstance(module, torch.nn.Linear):
                total = torch.zeros(module.in_features, dtype=torch.float64)
                self._sums[f"model.layers.{number}.{name}.weight"] = total
                self._hooks.append(module.register_forward_pre_hook(_adder(total)))

    def write(self, folder: Path) -> None:
        """Write activations.safetensors. Raises WorkerError if a sum is not finite in fp32."""
        for name, total in self._sums.items():
            if not torch.isfinite(total.float()).all():
                raise WorkerError(f"the inputs of {name} hold NaN or infinity in fp32")
        entries = [(name, "F32", tuple(total.shape)) for name, total in self._sums.items()]
        with SafetensorsWriter(folder, entries, metadata={"format": "pt"}) as writer:
            for name, total in self._sums.items():
                writer.write(name, total.float().numpy().tobytes())
        (folder / "model.safetensors").rename(folder / "activations.safetensors")


def _adder(total: Tensor) -> Callable[[object, tuple[Tensor]], None]:
    def add(_module: object, inputs: tuple[Tensor]) -> None:
        total.add_(inputs[0].flatten(0, -2).double().square_().sum(0))

    return add
