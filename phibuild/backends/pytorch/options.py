"""The options of the pytorch backend, and which of them do not go together."""

from __future__ import annotations

from typing import Literal

from pydantic import StrictBool

from phibuild.backends.calibration import gptq_contradiction
from phibuild.backends.common import chosen, joined, plain_weights
from phibuild.backends.mixed import MixedOptions, mixed_contradiction
from phibuild.schema import Contradiction, Precision

BITS: dict[Precision, int] = {"int4": 4, "int8": 8}
CAST: dict[Precision, str] = {"fp16": "float16", "fp32": "float32"}


class PytorchOptions(MixedOptions):
    """Options of the int4 and int8 variants; fp16 and fp32 have none."""

    group_size: Literal["auto", 32, 64, 128] = "auto"
    """Columns that share a scale. auto: 128, or 32 where 128 does not divide the width of every
    quantized layer; one size for the whole model."""
    symmetric: StrictBool = True
    """Codes signed around zero, no zero points. false: asymmetric, with packed zero points, for
    vLLM; Transformers 5.23 loads those with `CompressedTensorsConfig(dequantize=True)` alone."""
    scheme: Literal["W8A8", "FP8_DYNAMIC"] | None = None
    """int8 only: 8 bits with a scale for each row, and activations that servers round to 8 bits
    too, by token: integers (W8A8) or FP8 (E4M3), in products of 8 bits, which GPUs have. None:
    weights alone (W8A16)."""
    dtype: Literal["auto", "bfloat16", "float16"] = "auto"
    """Type of scales, embeddings, norms and lm_head. auto: the checkpoint's."""


def contradiction(precision: Precision, options: PytorchOptions) -> Contradiction | None:
    """Return options of quantization where nothing is quantized."""
    if precision in CAST:
        return plain_weights(precision, options)
    if options.scheme is not None:
        fitting = ("symmetric",) if options.symmetric else ()
        wrong = chosen(options, "scheme", "dtype", *fitting)
        if precision != "int8":
            return Contradiction(
                reason=f"scheme {options.scheme} has 8 bits, it is not {precision}",
                options=("scheme",),
                remedy="remove scheme, or ask for int8",
            )
        if wrong:
            return Contradiction(
                reason=f"scheme {options.scheme} has a scale for each row, without {joined(wrong)}",
                options=(*wrong, "scheme"),
                remedy=f"remove {joined(wrong)}, or scheme",
            )
    if options.mixes and not options.symmetric:
        return Contradiction(
            reason="Transformers takes artifacts with zero points for one type of all layers, so "
            f"{options.mixes[0]} needs symmetric ones",
            options=("symmetric", *options.mixes),
            remedy=f"remove symmetric, or {options.mixes[0]}",
        )
    return gptq_contradiction(precision, options) or mixed_contradiction(precision, options)
