"""Calibrated quantization: GPTQ over the original, for the grid of any format."""
