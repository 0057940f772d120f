"""The frequencies of rotary positions, as Transformers computes them. numpy only."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from phibuild.worker.architecture import Architecture


def theta_powers(arch: Architecture) -> NDArray[np.float32]:
    """Return theta^(2i / rotary_dim) [rotary_dim / 2]; exponents are float32, as Transformers'."""
    exponents = np.arange(0, arch.rotary_dim, 2).astype(np.float32) / np.float32(arch.rotary_dim)
    wide = [math.pow(arch.rope.theta, float(exponent)) for exponent in exponents]
    return np.asarray(wide, dtype=np.float32)


def short_frequencies(arch: Architecture) -> NDArray[np.float32]:
    """Return 1 / (factor * theta^(2i / rotary_dim)) [rotary_dim / 2], by the short factors of
    longrope where the model has them."""
    powers = theta_powers(arch)
    if arch.rope.is_longrope:
        powers = np.asarray(arch.rope.short, np.float32) * powers
    return np.float32(1.0) / powers
