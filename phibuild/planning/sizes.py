"""What an artifact will weigh, on disk and on its device, before it is built."""

from __future__ import annotations

import math
from dataclasses import dataclass

from phibuild.backends.base import Backend
from phibuild.checkpoints.facts import Checkpoint
from phibuild.schema import Device, Variant
from phibuild.worker.architecture import Architecture

# README.md and manifest of hashes that the core adds to every artifact.
_README_BYTES = 1500
_RUNTIME_BYTES = 100 << 20
_PREFILL_TOKENS = 512


@dataclass(frozen=True)
class ArtifactEstimate:
    """Bytes of the artifact's folder and of its weights, and bits per weight of the latter."""

    artifact_bytes: int
    weight_bytes: int
    types: dict[str, int]
    """Stored type -> parameters: what the finished artifact is checked against."""

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.weight_bytes / sum(self.types.values())


def estimate_artifact(spec: Backend, checkpoint: Checkpoint, variant: Variant) -> ArtifactEstimate:
    """Add up the variant's layout over the checkpoint's tensor shapes."""
    types: dict[str, int] = {}
    weight_bytes = 0
    for tensor in spec.layout(checkpoint.architecture, variant):
        types[tensor.kind] = types.get(tensor.kind, 0) + tensor.parameters
        weight_bytes += tensor.nbytes
    other = spec.other_bytes(checkpoint.architecture, checkpoint.files, variant)
    license_bytes = max(
        (size for name, size in checkpoint.files.files.items() if name.startswith("LICENSE")),
        default=0,
    )
    return ArtifactEstimate(
        artifact_bytes=weight_bytes + other + license_bytes + _README_BYTES,
        weight_bytes=weight_bytes,
        types=types,
    )


def usable_tokens(
    spec: Backend, architecture: Architecture, variant: Variant, device: Device
) -> int:
    """Return the tokens that can be used on a device: those of its context that the model has
    positions for and the runtime computes rightly."""
    limit = spec.context_limit(architecture, variant)
    tokens = min(device.context_length, architecture.max_positions)
    return min(tokens, limit.tokens) if limit else tokens


def context_note(
    spec: Backend, architecture: Architecture, variant: Variant, device: Device
) -> str | None:
    """Return what people have to know of the context on a device, None where there is nothing."""
    limit = spec.context_limit(architecture, variant)
    if limit is None:
        return None
    note = f"right up to {limit.tokens:,} of {architecture.max_positions:,} tokens: {limit.why}"
    if device.context_length > limit.tokens:
        note += (
            f". {device.title} is planned for a context of {device.context_length:,}; its memory "
            f"is reckoned for {usable_tokens(spec, architecture, variant, device):,}"
        )
    return note


def device_memory(
    spec: Backend,
    architecture: Architecture,
    variant: Variant,
    device: Device,
    weight_bytes: int,
) -> int:
    """Return the bytes that running the artifact takes on the device: weights, the KV cache for
    the tokens that can be used there, activations of a prefill chunk, and the runtime itself.

    KV cache: 2 (keys, values) x layers x kv_heads x head_dim x tokens x bytes per element.
    """
    tokens = usable_tokens(spec, architecture, variant, device)
    kv = (
        2 * architecture.layers * architecture.kv_heads * architecture.head_dim * tokens
    ) * spec.kv_bytes_per_element(variant)
    width = 2 * architecture.intermediate_size + 4 * architecture.hidden_size
    activations = 4 * (min(tokens, _PREFILL_TOKENS) * width + architecture.vocab_size)
    return weight_bytes + math.ceil(kv) + activations + _RUNTIME_BYTES
