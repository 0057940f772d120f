"""GGUF on the NPU of a Snapdragon: what of a file llama.cpp's Hexagon backend runs there. Core.

From docs/backend/snapdragon/ of llama.cpp (README.md, developer.md) and its pull request 28994;
nothing here was run on an NPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from phibuild.backends.llamacpp.cache import DEFAULT, bytes_per_element
from phibuild.backends.llamacpp.layout import Tensor, variant_tensors
from phibuild.backends.llamacpp.options import LlamaCppOptions
from phibuild.schema import Accelerator, Device, Precision, Variant
from phibuild.units import format_decimal
from phibuild.worker.architecture import Architecture

NPU: Accelerator = "hexagon_npu"
_REPACKED = ("Q4_0", "Q8_0")
"""Types that every version of that backend lays out anew for the NPU."""
_SINCE = ("Q4_1", "Q4_K", "Q6_K")
"""Those that it takes since September 2026."""
_SESSION = 3_500_000_000
"""Bytes that a session of the NPU maps at a time."""


def with_defaults(
    options: LlamaCppOptions, precision: Precision, device: Device
) -> LlamaCppOptions:
    """Return the options with the defaults of a device: where it has a Hexagon NPU, int4 is Q4_0,
    rounded by GPTQ unless they say how else or mix types."""
    if precision != "int4" or options.type or NPU not in device.accelerators:
        return options
    plain = options.method or options.imatrix or options.mixes
    return options.model_copy(
        update={"type": "Q4_0", "method": options.method if plain else "gptq"}
    )


def on_npu(arch: Architecture, variant: Variant) -> str | None:
    """Return, as Markdown for a card, what of a file that NPU runs, what stays on the CPU, and how
    many of its sessions the weights fill; None where it has no type for the layers' matrices."""
    tensors = [tensor for tensor in variant_tensors(arch, variant.options) if tensor.source]
    matrices = [tensor for tensor in tensors if len(tensor.shape) > 1]
    looked_up = [tensor for tensor in matrices if tensor.name == "token_embd.weight"]
    # A tied matrix is looked up in and multiplied with: it is there for both.
    multiplied = [tensor for tensor in matrices if tensor not in looked_up or arch.tied]
    layers = [tensor for tensor in multiplied if tensor.name.startswith("blk.")]
    if any(tensor.kind not in (*_REPACKED, *_SINCE) for tensor in layers) or not any(
        tensor.kind in _REPACKED for tensor in layers
    ):
        return None
    there = [tensor for tensor in multiplied if tensor.kind in _REPACKED]
    later = [tensor for tensor in multiplied if tensor.kind in _SINCE]
    stays = [f"the token embeddings, in which it looks rows up ({_weighs(looked_up)})"]
    if later:
        stays.append(
            f"{_names(later)} ({_weighs(later)}), which llama.cpp runs on the NPU since September "
            "2026 (its pull request 28994)"
        )
    sessions = math.ceil(sum(tensor.nbytes for tensor in there + later) / _SESSION)
    devices = ",".join(f"HTP{number}" for number in range(sessions))
    several = f"GGML_HEXAGON_NDEV={sessions} " if sessions > 1 else ""
    fits = (
        "all of it fits one session"
        if sessions == 1
        else f"it takes {sessions} sessions, or is mapped anew in every pass by versions that can"
    )
    kind = variant.options.get("kv_cache")
    elements = 1024 * 2 * arch.layers * arch.kv_heads * arch.head_dim
    kept = math.ceil(elements * bytes_per_element(kind or DEFAULT))
    cache = f" --cache-type-k {kind} --cache-type-v {kind}" if kind else ""
    return f"""With llama.cpp's Hexagon backend (Snapdragon 8 Gen 2 and later, Snapdragon X):

```sh
{several}llama-cli -m model-{variant.name}.gguf --device {devices} -ngl 99 --no-mmap \\
  --flash-attn on{cache} -p "Why is the sky blue?" -n 128
```

- On the NPU: {_weighs(there)} of matrices in {_kinds(there)}, and what lies between them.
- On the CPU: {"; ".join(stays)}.
- A session of the NPU maps {format_decimal(_SESSION)} at a time: {fits}. The KV cache comes on
  top, {format_decimal(kept)} for 1,024 tokens.
- phibuild judged the file by llama.cpp on a CPU; no NPU has run it."""


def _weighs(tensors: Sequence[Tensor]) -> str:
    return format_decimal(sum(tensor.nbytes for tensor in tensors))


def _kinds(tensors: Sequence[Tensor]) -> str:
    return " and ".join(sorted({tensor.kind for tensor in tensors}))


def _names(tensors: Sequence[Tensor]) -> str:
    """Return the names of one or two tensors, or how many of which types there are."""
    if len(tensors) < 3:
        return " and ".join(f"{tensor.name} in {tensor.kind}" for tensor in tensors)
    return f"{len(tensors)} matrices in {_kinds(tensors)}"
