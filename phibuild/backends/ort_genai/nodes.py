"""The nodes of a quantized product, with the names and attributes that the vendor's tool gives."""

from __future__ import annotations

import onnx_ir as ir

from phibuild.backends.ort_genai.tensors import QuantizedMatrix


def quantized_product(
    product: ir.Node, matrix: QuantizedMatrix, parts: list[ir.Value], accuracy_level: int
) -> list[ir.Node]:
    """Return what takes the place of a MatMul; the last node makes its output.

    `parts` are the values of the packed weight, the scales and, if there are any, the zero points.
    """
    rounding = matrix.rounding
    bits, block_size = rounding.bits, rounding.block_size
    if rounding.qdq:
        weight = ir.node(
            "DequantizeLinear",
            parts,
            {"axis": 0, "block_size": block_size},
            name=f"{product.name}_DQ_Q{bits}",
        )
        weight.outputs[0].name = f"{parts[0].name}_output"
        name = f"{product.name}_matmul_Q{bits}"
        return [weight, ir.node("MatMul", [product.inputs[0], weight.outputs[0]], name=name)]
    attributes = {"K": matrix.width, "N": matrix.outputs, "bits": bits, "block_size": block_size}
    if accuracy_level:
        attributes["accuracy_level"] = accuracy_level
    quantized = ir.node(
        "MatMulNBits",
        [product.inputs[0], *parts],
        dict(sorted(attributes.items())),
        domain="com.microsoft",
        name=f"{product.name}_Q{bits}",
    )
    return [quantized]
