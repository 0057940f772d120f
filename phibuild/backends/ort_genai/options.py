"""The options of the ort_genai backend, and which of them do not go together."""

from __future__ import annotations

from typing import Literal

from pydantic import StrictBool, field_validator

from phibuild.backends.calibration import gptq_contradiction
from phibuild.backends.common import plain_weights
from phibuild.backends.mixed import MixedOptions, mixed_contradiction
from phibuild.schema import Contradiction, Precision

Provider = Literal["cpu", "cuda", "dml", "webgpu", "trt_rtx"]
QUANTIZED: tuple[Precision, ...] = ("int4", "int8")


class OrtGenaiOptions(MixedOptions):
    """Options of ort_genai; the names that the builder gives them are in brackets."""

    provider: Provider = "cpu"
    """Execution provider that the graph is made for; trt_rtx is NvTensorRtRtx."""
    block_size: Literal[16, 32, 64, 128, 256] = 32
    """Weights along the input width that share a scale [block_size]."""
    algorithm: Literal["default", "rtn", "k_quant"] = "default"
    """How weights are rounded [algo_config]: default is ONNX Runtime's own kernel; rtn and
    k_quant are those of Neural Compressor; k_quant searches scales and is much slower."""
    symmetric: StrictBool = True
    """Without zero points [is_symmetric]; k_quant always has zero points."""
    accuracy_level: Literal[0, 1, 2, 3, 4] | None = None
    """Least precision of the activations in MatMulNBits: 1 fp32, 2 fp16, 3 bf16, 4 int8, 0 the
    provider's choice; None is the builder's default, 4 for cpu and webgpu, else 0."""
    int8_matmuls: tuple[Literal["last_matmul", "mixed_layers"], ...] = ()
    """Products kept at int8 in an int4 model [matmul_mixed_precision]: the last (lm_head), and
    those of llama.cpp's mixed rule (qkv and down projection of a third of the layers)."""

    kv_cache: Literal["int8"] | None = None
    """Type of the KV cache: int8 with a scale for each channel [kv_cache_quant_scheme], by the
    original's keys and values over the calibration text; None is that of inputs and outputs."""

    @property
    def uses_text(self) -> bool:
        return super().uses_text or self.kv_cache is not None

    @field_validator("int8_matmuls")
    @classmethod
    def _sorted(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(sorted(set(value)))


def contradiction(precision: Precision, options: OrtGenaiOptions) -> Contradiction | None:
    """Return the options of quantization that the precision has not."""
    if precision not in QUANTIZED:
        beside = ("kv_cache", "text") if options.kv_cache else ()
        return plain_weights(precision, options, "provider", *beside)
    if options.int8_matmuls and precision != "int4":
        return Contradiction(
            reason="int8_matmuls raises products of an int4 model; this one is int8 already",
            options=("int8_matmuls",),
            remedy="remove int8_matmuls",
        )
    if options.is_gptq and options.algorithm != "default":
        return Contradiction(
            reason=f"method gptq rounds weights itself, without algorithm {options.algorithm}",
            options=("algorithm", "method"),
            remedy="remove algorithm, or method",
        )
    if options.mixes and options.provider in ("dml", "trt_rtx"):
        return Contradiction(
            reason=f"{options.provider} takes int4 products alone, without {options.mixes[0]}",
            options=("provider", *options.mixes),
            remedy=f"remove {options.mixes[0]}, or use another provider",
        )
    if options.has_target and options.block_size not in (32, 64, 128):
        return Contradiction(
            reason=f"losses are measured in blocks of 32, 64 or 128, not of {options.block_size}",
            options=("block_size", *options.mixes),
            remedy=f"use one of these, or remove {options.mixes[0]}",
        )
    found = mixed_contradiction(precision, options, "int8_matmuls")
    return found or gptq_contradiction(precision, options)
