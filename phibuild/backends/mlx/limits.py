"""Bounds that the runtimes and the plan share. Standard library only."""

# A model in mlx-lm's own kernels stays in memory up to so many bytes of weights.
RESIDENT_BYTES = 1 << 30
