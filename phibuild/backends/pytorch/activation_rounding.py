"""Activations rounded to 8 bits, as servers of compressed-tensors do: by that package's code."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import Module

if TYPE_CHECKING:  # it takes a tenth of a second, and few artifacts need it
    from compressed_tensors.quantization import QuantizationArgs

Hook = Callable[[Module, tuple[Tensor, ...]], tuple[Tensor, ...]]


def rounding(how: QuantizationArgs) -> Hook:
    """Return a hook for what a linear layer takes in [B, T, width]: each token is rounded by a
    scale of its own, and comes out as floats."""
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp

    def round_input(module: Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        scale, zero_point = compute_dynamic_scales_and_zp(inputs[0], how, module)
        return (fake_quantize(inputs[0], scale, zero_point, how), *inputs[1:])

    return round_input
