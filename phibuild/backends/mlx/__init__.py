"""MLX safetensors for mlx-lm: affine and microscaling quantization, and plain casts."""
