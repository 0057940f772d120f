"""How a slab of a product's weight becomes packed bits, scales and zero points.

The builder's default is ONNX Runtime's kernels, `MlasQuantizeBlockwise` and, for DequantizeLinear,
`MlasQDQQuantizeBlockwise` (core/mlas/lib/q4_dq.cpp). They take one weight at a time; the same
arithmetic runs over whole slabs here and gives the same bits. The kernels themselves are called
for what is left out: blocks that the weight's end cuts off, values that are not finite, machines
whose kernel rounds otherwise (`kernel_rounds_twice`).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnxruntime.capi._pybind_state import (
    quantize_matmul_4bits,
    quantize_matmul_8bits,
    quantize_qdq_matmul_4bits,
)
from onnxruntime.quantization.neural_compressor.weight_only import (
    make_matmul_weight_only_node,
    pad_tensor,
    quant_tensor,
    quant_tensor_k_quant_cpu,
)

from phibuild.worker.floats import Bytes, pack_nibbles

Array = NDArray[np.number]

# The largest float32 below a half: added before truncation it rounds halves away from zero, as
# roundf does, and nothing else up.
_HALF = float(np.nextafter(np.float32(0.5), np.float32(0)))


@dataclass(frozen=True)
class Rounding:
    """How a product is quantized; the first fields mean what they mean in `OrtGenaiOptions`."""

    bits: int
    block_size: int
    symmetric: bool
    algorithm: str
    qdq: bool = False
    """For DequantizeLinear, which keeps the weight [K, N], instead of MatMulNBits."""

    @property
    def has_zero_points(self) -> bool:
        return self.algorithm == "k_quant" or not self.symmetric

    def suffixes(self) -> tuple[str, str, str]:
        """Return what the vendor appends to a weight's name: packed, scales, zero points."""
        if self.qdq:
            return f"_DQ_Q{self.bits}", "_DQ_scales", "_DQ_zero_points"
        if self.algorithm == "default":
            return f"_Q{self.bits}", "_scales", "_zero_points"
        return f"_Q{self.bits}G{self.block_size}", "_scale", "_zp"


@dataclass
class Blocks:
    """A quantized slab: bytes of packed weights, scales, bytes of zero points."""

    packed: Bytes
    scales: Array
    zero_points: Bytes | None


def quantize(slab: torch.Tensor, rounding: Rounding) -> Blocks:
    """Quantize a slab in the I/O type, contiguous: rows [n, K] of the checkpoint's weight, or
    [k, N] of its transpose for DequantizeLinear. Blocks lie along K."""
    if rounding.algorithm != "default":
        return _neural_compressor(slab, rounding)
    made = _by_tensors(slab, rounding) if kernel_rounds_twice() else None
    return made or _by_kernel(slab, rounding)


@functools.cache
def kernel_rounds_twice() -> bool:
    """Whether the kernel rounds the product before it adds the zero point, as tensors do.

    Where its compiler fuses the two (aarch64), 24/8 * 7.4999990 + 8 falls to the other side of
    10.5.
    """
    probe = torch.zeros(1, 16)
    probe[0, :2] = torch.tensor([-24.0, float.fromhex("0x1.dffff8p+2")])
    rounding = Rounding(4, 16, True, "default")
    ours = _by_tensors(probe, rounding)
    return ours is not None and np.array_equal(ours.packed, _by_kernel(probe, rounding).packed)


def _by_tensors(slab: torch.Tensor, rounding: Rounding) -> Blocks | None:
    """Return what the kernel makes of the slab, or None if it has something left out here."""
    block, axis = rounding.block_size, 0 if rounding.qdq else 1
    if slab.shape[axis] % block:
        return None
    values = slab.float().unflatten(axis, (-1, block))
    axis += 1
    top, middle = 2**rounding.bits - 1, 2 ** (rounding.bits - 1)
    high, low = values.amax(axis), values.amin(axis)
    zero_points = None
    if rounding.symmetric:
        extreme = torch.where(high.abs() > low.abs(), high, low)
        # The sign of a zero is that of the block's first.
        extreme = torch.where(extreme == 0, values.select(axis, 0), extreme)
        scales = (extreme / -middle).to(slab.dtype)
    else:
        high, low = high.clamp(min=0), low.clamp(max=0)
        exact = (high - low) / top + 0.0  # no negative zero
        zero_points = torch.where(exact != 0, 0 - low / exact, low)
        zero_points = zero_points.clamp_(0, top).add_(_HALF).to(torch.uint8)
        scales = exact.to(slab.dtype)
    scale = scales.float()
    inverse = torch.where(scale != 0, 1 / scale, 0)
    if not torch.isfinite(scale * inverse).all():
        return None
    offset = middle if zero_points is None else zero_points.float().unsqueeze(axis)
    steps = values * inverse.unsqueeze(axis)
    if rounding.qdq:  # this kernel rounds before it adds the zero point
        steps.add_(torch.full((), _HALF).copysign(steps)).trunc_().add_(offset).clamp_(0, top)
        codes = steps.to(torch.uint8).flatten()
        if rounding.symmetric:
            codes ^= 8  # two's complement
    else:
        codes = steps.add_(offset).clamp_(0, top).add_(_HALF).to(torch.uint8)
    return Blocks(
        _packed(codes, rounding.bits),
        scales.numpy(),
        None if zero_points is None else _packed_zero_points(zero_points, rounding),
    )


def _packed(codes: torch.Tensor, bits: int) -> Bytes:
    """Return codes [..., n], n even, as bytes: of two 4-bit codes the first is the low one."""
    packed: Bytes = codes.numpy()
    return pack_nibbles(packed) if bits == 4 else packed


def _packed_zero_points(codes: torch.Tensor, rounding: Rounding) -> Bytes:
    if rounding.qdq:  # one stream of nibbles; only its end can be odd
        codes = torch.nn.functional.pad(codes.flatten(), (0, codes.numel() % 2))
    elif rounding.bits == 4:  # the kernel fills a row's last byte with its middle value
        codes = torch.nn.functional.pad(codes, (0, codes.shape[1] % 2), value=8)
    return _packed(codes, rounding.bits)


def _by_kernel(slab: torch.Tensor, rounding: Rounding) -> Blocks:
    """As `DefaultWeightOnlyQuantizer.qbits_block_quant` of onnxruntime."""
    matrix: Array = (slab if rounding.qdq else slab.T.contiguous()).numpy()
    width, outputs = matrix.shape
    bits, block, symmetric = rounding.bits, rounding.block_size, rounding.symmetric
    blocks = -(-width // block)
    if rounding.qdq:
        packed = np.zeros(-(-width * outputs // 2), np.uint8)
        zero_points = np.zeros(-(-blocks * outputs // 2), np.uint8)
        scales = np.zeros((blocks, outputs), matrix.dtype)
        kernel = quantize_qdq_matmul_4bits
    else:
        matrix = pad_tensor(matrix, block, blocks)
        packed = np.zeros((outputs, blocks, block * bits // 8), np.uint8)
        zero_points = np.zeros((outputs, -(-blocks * bits // 8)), np.uint8)
        scales = np.zeros((outputs, blocks), matrix.dtype)
        kernel = quantize_matmul_4bits if bits == 4 else quantize_matmul_8bits
    kernel(packed, matrix, scales, zero_points, block, outputs, width, symmetric)
    return Blocks(packed, scales, None if symmetric else zero_points)


def _neural_compressor(rows: torch.Tensor, rounding: Rounding) -> Blocks:
    """As `rtn_quantize` of onnxruntime's copy of Neural Compressor. The CPU form of k_quant is
    called by name: the vendor's takes a GPU where there is one, and rounds otherwise there."""
    block = rounding.block_size
    matrix: Array = rows.numpy().T
    blocks = -(-matrix.shape[0] // block)
    padded = pad_tensor(matrix, block, blocks).T
    if rounding.algorithm == "k_quant":
        quantized, scale, zero_point = quant_tensor_k_quant_cpu(padded, rounding.bits, block)
    else:
        scheme = "sym" if rounding.symmetric else "asym"
        quantized, scale, zero_point = quant_tensor(padded, rounding.bits, block, scheme, "uint", 1)
    _, initializers = make_matmul_weight_only_node(
        node=onnx.helper.make_node("MatMul", ["input", "weight"], ["output"], name="product"),
        weight_shape=matrix.shape,
        num_bits=rounding.bits,
        group_size=block,
        k_blocks=blocks,
        q_weight=quantized.astype(np.uint8),
        scale=scale.astype(matrix.dtype),
        zero_point=zero_point if rounding.has_zero_points else None,
    )
    made = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in initializers}
    packed, scales, zero_points = ("weight" + suffix for suffix in rounding.suffixes())
    return Blocks(made[packed], made[scales], made.get(zero_points))
