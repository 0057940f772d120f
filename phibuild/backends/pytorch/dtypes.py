"""PyTorch's names of the types in safetensors files."""

from __future__ import annotations

import torch

FLOATS = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
CODES = {"I8": torch.int8, "F8_E4M3": torch.float8_e4m3fn}
DTYPES = {**FLOATS, **CODES, "I32": torch.int32, "I64": torch.int64}
