"""The ort_genai backend as the core sees it: variants, sizes, and what runs them.

What cannot work is in `limits`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from phibuild.backends.base import (
    BackendSpec,
    Best,
    ContextLimit,
    MatrixTypes,
    SourceFiles,
    StoredTensor,
    changed,
)
from phibuild.backends.calibration import (
    EMBEDDED,
    TOKENS,
    calibrated_variant,
    make_calibration,
)
from phibuild.backends.common import cached_variant, copied_bytes, make_variant, undivided
from phibuild.backends.mixed import UNMIXED, mixed_variant
from phibuild.backends.ort_genai.layout import (
    cache_scales_bytes,
    io_bytes,
    matrix_types,
    rope_cache_bytes,
    stored_tensors,
)
from phibuild.backends.ort_genai.limits import context, impossible
from phibuild.backends.ort_genai.memory import build_memory, judge_memory
from phibuild.backends.ort_genai.options import (
    QUANTIZED,
    OrtGenaiOptions,
    Provider,
    contradiction,
)
from phibuild.schema import (
    Contradiction,
    Device,
    Judging,
    Misfit,
    Options,
    Precision,
    Skip,
    Variant,
)
from phibuild.worker.architecture import Architecture
from phibuild.worker.grids import Grid

_GPTQ: Options = {**UNMIXED, "block_size": 32, "algorithm": "default", "method": "gptq"}
# What has to be installed to run an artifact.
_RUNTIME: dict[Provider, str] = {
    "cpu": "pip install onnxruntime-genai",
    "cuda": "pip install onnxruntime-genai-cuda",
    "dml": "pip install onnxruntime-genai-directml",
    "webgpu": "onnxruntime-genai with the WebGPU execution provider",
    "trt_rtx": "onnxruntime-genai with the NvTensorRtRtx execution provider",
}


class OrtGenaiSpec(BackendSpec[OrtGenaiOptions]):
    """ONNX + genai_config for cpu, cuda, dml, webgpu and trt_rtx."""

    name = "ort_genai"
    title = "ONNX Runtime GenAI"
    format = "ONNX"
    library = "onnx"
    # onnx 1.21 and later takes external data with several hard links for an attack.
    copied = ("*.onnx.data",)
    toolchain_bytes = 1_100_000_000
    options = OrtGenaiOptions
    best = (
        Best({**_GPTQ, "int8_matmuls": ["last_matmul", "mixed_layers"]}),
        Best({**_GPTQ, "int8_matmuls": ["mixed_layers"]}),  # tied embeddings
        Best({**_GPTQ, "symmetric": False}),  # dml
        Best(_GPTQ),  # dml, tied embeddings
        Best({"block_size": 32, "symmetric": False}),  # trt_rtx
        Best({"block_size": 32}),
    )

    def contradiction(self, precision: Precision, options: OrtGenaiOptions) -> Contradiction | None:
        """Return options of quantization where nothing is quantized, or as it is already."""
        return contradiction(precision, options)

    def variant(
        self, precision: Precision, options: OrtGenaiOptions, device: Device, arch: Architecture
    ) -> Variant | Skip | Misfit:
        """Return what to build, or why the builder or the provider cannot do it."""
        reason = impossible(precision, options, device, arch)
        if reason:
            return Skip(reason=reason)
        chosen: Options = {"provider": options.provider}
        if precision in QUANTIZED:
            level: int | None = options.accuracy_level
            if level is None:
                level = _default_accuracy_level(options.provider)
            chosen |= {
                "block_size": options.block_size,
                "algorithm": options.algorithm,
                "symmetric": options.symmetric and options.algorithm != "k_quant",
                "accuracy_level": level,
                "int8_matmuls": list(options.int8_matmuls),
            }
        variant = make_variant(self, precision, _variant_name(precision, options), chosen)
        made = self._with_types(variant, options, arch)
        if not options.kv_cache:
            return made
        return changed(made, lambda variant: _with_cache(variant, options))

    def _with_types(
        self, variant: Variant, options: OrtGenaiOptions, arch: Architecture
    ) -> Variant | Skip | Misfit:
        if not options.is_gptq and not options.mixes:
            return variant
        grid = Grid(
            4,
            options.block_size,
            "middle" if options.symmetric else "code",
            "F32" if options.provider == "cpu" else "F16",
            head="last_matmul" not in options.int8_matmuls,
        )
        if options.is_gptq and options.provider == "trt_rtx":
            return Skip(
                reason="GPTQ's codes go with MatMulNBits, which TensorRT-RTX's graph has not; "
                "remove method"
            )
        reason = undivided(arch, options.block_size)
        if reason and options.is_gptq:
            return Skip(reason=f"{reason}, which method gptq needs; use a smaller block_size")
        if reason and options.has_target:
            return Skip(reason=f"{reason}, in which losses are measured; use a smaller block_size")
        if options.is_gptq:
            variant = calibrated_variant(variant, options, grid)
        if not options.mixes:
            return variant
        matrices = self.matrices(arch, variant)
        return mixed_variant(variant, options, replace(grid, head=False), matrices)

    def matrices(self, arch: Architecture, variant: Variant) -> Sequence[MatrixTypes]:
        """Return the matrices whose products can have 8 bits."""
        return matrix_types(arch, variant)

    def layout(self, arch: Architecture, variant: Variant) -> Sequence[StoredTensor]:
        """Return the initializers of the graph that hold weights."""
        return stored_tensors(arch, variant)

    def other_bytes(self, arch: Architecture, source: SourceFiles, variant: Variant) -> int:
        """Return the bytes of rope caches, scales of a KV cache and tokenizer, and of the files
        that are copied."""
        copied = copied_bytes(source) - source.files.get("tokenizer.json", 0)
        tables = rope_cache_bytes(arch, variant) + cache_scales_bytes(arch, variant)
        return tables + _tokenizer_bytes(source) + copied

    def build_memory(
        self, arch: Architecture, source_bytes: int, variants: Sequence[Variant]
    ) -> int:
        """Return a bound that grows with the vocabulary, the largest product and the rope tables,
        not with layers: variants are made one after the other, their weights slab by slab."""
        return max(build_memory(arch, variant) for variant in variants)

    def judge_memory(
        self, arch: Architecture, variants: Sequence[Variant], window_tokens: int
    ) -> int:
        """Return a bound that holds the weights as ONNX Runtime's CPU kernels pack them: about
        0.75 bytes a weight for int4, 1.25 for int8, 4 for fp16 and fp32."""
        return max(judge_memory(arch, variant, window_tokens) for variant in variants)

    def context_limit(self, arch: Architecture, variant: Variant) -> ContextLimit | None:
        """Return the model's window for a provider whose attention has none."""
        return context(arch, variant.options["provider"])

    def most_tokens(self, arch: Architecture, variant: Variant) -> int:
        """Return the model's positions: the graph has rope tables for no more."""
        return arch.max_positions

    def judging(self, variant: Variant) -> Judging:
        """The CPU provider runs the graph, whatever provider it is made for."""
        if variant.options["provider"] == "cpu":
            return Judging()
        return Judging(how="substitute", note="its graph on the CPU")

    def kv_bytes_per_element(self, variant: Variant) -> float:
        """Return 4 on cpu, where inputs and outputs are fp32 at any precision; else 2. An int8
        cache is there twice: the CPU provider writes a new one in every pass."""
        return 2.0 if "kv_cache" in variant.options else float(io_bytes(variant))

    def run_command(self, variant: Variant) -> str:
        """Return a Python program. It sets max_length, because genai_config.json asks for the
        whole context of the model, and the KV cache is allocated for all of it at once."""
        runtime = _RUNTIME[variant.options["provider"]]
        prompt = json.dumps("def fibonacci(n):")
        return (
            f"# needs {runtime}\n"
            "import onnxruntime_genai as og\n\n"
            'model = og.Model(".")\n'
            "tokenizer = og.Tokenizer(model)\n"
            "params = og.GeneratorParams(model)\n"
            "params.set_search_options(max_length=256, do_sample=False)\n"
            "generator = og.Generator(model, params)\n"
            f"generator.append_tokens(tokenizer.encode({prompt}))\n"
            "while not generator.is_done():\n"
            "    generator.generate_next_token()\n"
            "print(tokenizer.decode(generator.get_sequence(0)))\n"
        )


def _with_cache(variant: Variant, options: OrtGenaiOptions) -> Variant:
    """Return the variant whose cache has scales of what a text sends into it: as much of it as
    GPTQ sees, where that is the method."""
    assert options.kv_cache is not None
    text = make_calibration(options.text or EMBEDDED, options.tokens or TOKENS)
    variant = cached_variant(variant, options.kv_cache, 8)
    content = {"text": text.sha256, "tokens": text.tokens}
    return variant.model_copy(
        update={"options": {**variant.options, **content}, "cache_ranges": text}
    )


def _default_accuracy_level(provider: Provider) -> int:
    """The builder's (`QuantConfig.from_extra_options`)."""
    return 4 if provider in ("cpu", "webgpu") else 0


def _variant_name(precision: Precision, options: OrtGenaiOptions) -> str:
    if precision not in QUANTIZED:
        return f"{precision}-{options.provider}"
    name = f"{precision}-{options.provider}-b{options.block_size}"
    if options.algorithm != "default":
        name += f"-{options.algorithm}"
    if not options.symmetric and options.algorithm != "k_quant":
        name += "-asym"
    name += "".join(f"-{selector}" for selector in options.int8_matmuls)
    if options.accuracy_level not in (None, _default_accuracy_level(options.provider)):
        name += f"-acc{options.accuracy_level}"
    return name


def _tokenizer_bytes(source: SourceFiles) -> int:
    """Return the bytes of tokenizer.json as Transformers saves it, indented: a token is a line
    `      "t": 12345,` and a merge four lines (an array of two strings)."""
    digits = len(str(max(source.tokens, 1)))
    vocabulary = source.token_bytes + source.tokens * (6 + 2 + 2 + digits + 2)
    halves = source.merge_bytes - source.merges  # without the space between two halves
    merges = halves + source.merges * (8 + 11 + 2 + 10 + 2 + 9)
    return max(source.files.get("tokenizer.json", 0), vocabulary + merges)


SPEC = OrtGenaiSpec()
