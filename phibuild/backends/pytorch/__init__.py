"""Safetensors for PyTorch: plain casts, and compressed-tensors for int8 and int4."""
