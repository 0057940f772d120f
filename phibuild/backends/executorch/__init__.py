"""The executorch backend: ExecuTorch programs (.pte) for XNNPACK, with a KV cache."""
