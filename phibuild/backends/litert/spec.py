"""The litert backend as the core sees it: variants, skips, sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from phibuild.backends.base import (
    BackendSpec,
    Best,
    ContextLimit,
    MatrixTypes,
    SourceFiles,
    StoredTensor,
    TypeChoice,
)
from phibuild.backends.calibration import calibrated_variant
from phibuild.backends.common import copied_bytes, make_variant, undivided
from phibuild.backends.litert.layout import (
    PREFILL_TOKENS,
    ROW,
    Encoding,
    encoding,
    type_name,
)
from phibuild.backends.litert.memory import build_memory, judge_memory
from phibuild.backends.litert.options import LiteRtOptions, contradiction
from phibuild.backends.mixed import GPTQ_LOSS, UNMIXED, affine_error, mixed_variant
from phibuild.schema import Contradiction, Device, Misfit, Precision, Skip, Variant
from phibuild.worker.architecture import Architecture
from phibuild.worker.grids import Grid

_GROUP_SIZE = 32
_CONTEXT = 4096
_LAYER_BYTES = 15_000
"""Of a layer's operators and tensors in the flatbuffer, in both signatures."""
_COMPRESSED = 0.35
"""What zlib leaves of a tokenizer.json."""


class LiteRtSpec(BackendSpec[LiteRtOptions]):
    """LiteRT models, and bundles of them for LiteRT-LM."""

    name = "litert"
    title = "LiteRT (LiteRT-LM)"
    format = "LiteRT"
    library = "litert-lm"
    toolchain_bytes = 160_000_000
    options = LiteRtOptions
    best = (Best({**UNMIXED, "group_size": 32, "method": "gptq"}),)

    def contradiction(self, precision: Precision, options: LiteRtOptions) -> Contradiction | None:
        """Return groups where there are none, and options that decide the same."""
        return contradiction(precision, options)

    def variant(
        self, precision: Precision, options: LiteRtOptions, device: Device, arch: Architecture
    ) -> Variant | Skip | Misfit:
        """Return the variant, or why it would not work with this model."""
        limit = _limit(arch)
        context = options.context or min(_CONTEXT, device.context_length, limit.tokens)
        context = context // PREFILL_TOKENS * PREFILL_TOKENS
        if context > limit.tokens or context < PREFILL_TOKENS:
            return Skip(
                reason=f"a context of {options.context or limit.tokens} is not "
                f"{PREFILL_TOKENS} to {limit.tokens} tokens: {limit.why}"
            )
        own = {"mode": precision, "context": context, "container": options.container}
        if precision != "int4":
            return make_variant(self, precision, _name(precision, options), own)
        group_size = options.group_size or _GROUP_SIZE
        reason = undivided(arch, group_size)
        if reason:
            return Skip(reason=f"{reason}; use a smaller group_size")
        own["group_size"] = group_size
        variant = make_variant(self, "int4", _name(f"int4-b{group_size}", options), own)
        # The delegate takes positive scales alone.
        grid = Grid(4, group_size, "middle", "BF16", negative=False, head=True)
        if options.is_gptq:
            variant = calibrated_variant(variant, options, grid)
        return mixed_variant(variant, options, grid, self.matrices(arch, variant))

    def matrices(self, arch: Architecture, variant: Variant) -> list[MatrixTypes]:
        """Return all matrices: 4 bits in blocks, smaller blocks, or 8 bits with a scale for each
        row."""
        group_size = variant.options["group_size"]
        gptq = GPTQ_LOSS if variant.options.get("method") == "gptq" else 1.0
        errors = {Encoding("INT4", group_size): affine_error(4, group_size) * gptq}
        if group_size > _GROUP_SIZE:
            errors[Encoding("INT4", _GROUP_SIZE)] = affine_error(4, _GROUP_SIZE)
        errors[Encoding("INT8")] = affine_error(8, ROW)
        return [
            MatrixTypes(
                name,
                name,
                tuple(
                    TypeChoice(
                        type_name(how), how.data_bytes(shape) + how.scale_bytes(shape), error
                    )
                    for how, error in errors.items()
                ),
            )
            for name, shape in arch.tensors()
            if len(shape) == 2
        ]

    def layout(self, arch: Architecture, variant: Variant) -> list[StoredTensor]:
        """Return every weight as the model stores it."""
        tensors = []
        for name, shape in arch.tensors():
            how = encoding(name, shape, variant.options)
            nbytes = how.data_bytes(shape) + how.scale_bytes(shape)
            tensors.append(StoredTensor(name, how.kind, math.prod(shape), nbytes))
        return tensors

    def other_bytes(self, arch: Architecture, source: SourceFiles, variant: Variant) -> int:
        """Return the bytes of the graphs, of the bundle's tokenizer and of the files that are
        copied."""
        graphs = _LAYER_BYTES * arch.layers
        tokenizer = 0.0
        if variant.options["container"] == "litertlm":
            tokenizer = _COMPRESSED * source.files.get("tokenizer.json", 0)
        return graphs + round(tokenizer) + copied_bytes(source)

    def build_memory(
        self, arch: Architecture, source_bytes: int, variants: Sequence[Variant]
    ) -> int:
        """Return a bound that the weights do not change: they are streamed."""
        return build_memory(arch, [variant.options for variant in variants])

    def judge_memory(
        self, arch: Architecture, variants: Sequence[Variant], window_tokens: int
    ) -> int:
        """Return a bound that holds the cache, and fp16 weights as fp32."""
        return judge_memory(arch, [variant.options for variant in variants], window_tokens)

    def context_limit(self, arch: Architecture, variant: Variant) -> ContextLimit | None:
        """Return the tokens of the cache, whose size is part of the model."""
        context = variant.options["context"]
        if context >= arch.max_positions:
            return None
        return ContextLimit(
            context, "the model's KV cache holds no more (option context of the litert backend)"
        )

    def kv_bytes_per_element(self, variant: Variant) -> float:
        """Return 4: the graph's caches are fp32."""
        return 4.0

    def run_command(self, variant: Variant) -> str:
        """Return the command of LiteRT-LM, or Python that opens the model."""
        if variant.options["container"] == "litertlm":
            return 'litert-lm run model.litertlm --prompt "Why is the sky blue?"'
        return super().run_command(variant)


def _limit(arch: Architecture) -> ContextLimit:
    """Return the longest context that a graph can be made for."""
    limits = [ContextLimit(arch.max_positions, "the model has no more positions")]
    if arch.rope.is_longrope:
        limits.append(
            ContextLimit(
                arch.original_max_positions,
                "the graph has longrope's short factors, which the model uses up to there",
            )
        )
    if arch.sliding_window:
        limits.append(
            ContextLimit(
                arch.sliding_window,
                "the model's attention reaches back over a window of that many tokens, which "
                "LiteRT-LM's mask does not have",
            )
        )
    return min(limits, key=lambda limit: limit.tokens)


def _name(name: str, options: LiteRtOptions) -> str:
    """Return a variant's name, with a context that was asked for: that of a device goes without
    saying."""
    return f"{name}-c{options.context}" if options.context else name


SPEC = LiteRtSpec()
