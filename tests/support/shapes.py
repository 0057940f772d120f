"""Shapes of models, for plans of what is not built."""

from __future__ import annotations

from dataclasses import replace

from phibuild.worker.architecture import Architecture, Rope

PHI_3_5_MINI = Architecture(
    hidden_size=3072,
    intermediate_size=8192,
    layers=32,
    heads=32,
    kv_heads=32,
    vocab_size=32064,
    tied=False,
    max_positions=131072,
    original_max_positions=4096,
    sliding_window=None,
    norm_eps=1e-5,
    dtype="bfloat16",
    rope=Rope(10000.0, 1.0, (1.0,) * 48, (2.0,) * 48),
)
SMALL = replace(
    PHI_3_5_MINI,
    hidden_size=256,
    intermediate_size=512,
    layers=16,
    heads=8,
    kv_heads=8,
    vocab_size=1000,
    rope=Rope(10000.0, 1.0, (1.0,) * 16, (2.0,) * 16),
)
"""Of sixteen layers, as rules by layer want them."""
