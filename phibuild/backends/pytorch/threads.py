"""How many threads PyTorch computes with, and that its results do not depend on which of them were
first. See worker.py for what has to be set before PyTorch is loaded."""

from __future__ import annotations

import torch

# PyTorch's elementwise functions that call MKL's vector math (aten/src/ATen/cpu/vml.h).
_VECTOR_MATH = (
    "acos",
    "asin",
    "atan",
    "cos",
    "cosh",
    "erf",
    "erfc",
    "erfinv",
    "exp",
    "expm1",
    "lgamma",
    "log",
    "log10",
    "log1p",
    "log2",
    "rsqrt",
    "sigmoid",
    "sin",
    "sinh",
    "sqrt",
    "tan",
    "tanh",
    "trunc",
)


def use_threads(count: int) -> None:
    """Compute with `count` threads from now on.

    MKL chooses the code of each of its vector functions when it is first called; where several
    threads do so at once, one of them may run a choice of half the digits (pytorch/pytorch#188792),
    enough to make logits differ in the fourth. So each is called here, by one thread.
    """
    torch.set_num_threads(1)
    for dtype in (torch.float32, torch.float64):
        values = torch.full((16,), 0.5, dtype=dtype)
        for name in _VECTOR_MATH:
            getattr(torch, name)(values)
    torch.set_num_threads(count)
