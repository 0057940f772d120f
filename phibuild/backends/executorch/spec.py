"""The executorch backend as the core sees it: variants, skips, sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

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
from phibuild.backends.executorch.layout import (
    EMBEDDING,
    PREFILL_TOKENS,
    ROW,
    Encoding,
    embedding_encoding,
    factor_encoding,
    factors,
    type_name,
)
from phibuild.backends.executorch.memory import build_memory, judge_memory
from phibuild.backends.executorch.options import ExecuTorchOptions, contradiction
from phibuild.backends.mixed import GPTQ_LOSS, UNMIXED, affine_error, mixed_variant
from phibuild.schema import Contradiction, Device, Misfit, Precision, Skip, Variant
from phibuild.worker.architecture import Architecture
from phibuild.worker.grids import Grid

_GROUP_SIZE = 32
_CONTEXT = 4096
_LAYER_BYTES = 12_000
"""Of a layer's graph, and of its instructions in both methods."""

_IN_AN_APP = """\
ExecuTorch's language model runner (`TextLLMRunner`; on Android `LlmModule`, on iOS `TextRunner`)
takes `model.pte` and the tokenizer: `runner_tokenizer.json` where that is here, `tokenizer.json`
otherwise. The runner decodes token by token; by the `tokenizer.json` of such models it would lose
the space before each. It applies no chat template: give it the text of `chat_template.jinja`, as
`phibuild run` renders it. It stops at the ids that the program names (`get_eos_ids`); the method
`logits` gives those of all tokens of a call, to measure by."""


class ExecuTorchSpec(BackendSpec[ExecuTorchOptions]):
    """ExecuTorch programs for XNNPACK: phones' and boards' CPUs."""

    name = "executorch"
    title = "ExecuTorch (XNNPACK)"
    format = "ExecuTorch"
    library = "executorch"
    toolchain_bytes = 900_000_000
    options = ExecuTorchOptions
    best = (Best({**UNMIXED, "group_size": 32, "method": "gptq"}),)

    def contradiction(
        self, precision: Precision, options: ExecuTorchOptions
    ) -> Contradiction | None:
        """Return groups where there are none, and options that decide the same."""
        return contradiction(precision, options)

    def variant(
        self, precision: Precision, options: ExecuTorchOptions, device: Device, arch: Architecture
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
        own = {"mode": precision, "context": context}
        if precision != "int4":
            return make_variant(self, precision, _name(precision, options), own)
        group_size = options.group_size or _GROUP_SIZE
        reason = undivided(arch, group_size)
        if reason:
            return Skip(reason=f"{reason}; use a smaller group_size")
        own["group_size"] = group_size
        variant = make_variant(self, "int4", _name(f"int4-b{group_size}", options), own)
        # XNNPACK takes positive scales alone.
        grid = Grid(4, group_size, "middle", "BF16", negative=False, head=True)
        if options.is_gptq:
            variant = calibrated_variant(variant, options, grid)
        return mixed_variant(variant, options, grid, self.matrices(arch, variant))

    def matrices(self, arch: Architecture, variant: Variant) -> list[MatrixTypes]:
        """Return what XNNPACK multiplies by: 4 bits in blocks, smaller blocks, or 8 bits with a
        scale for each row. The embedding has 8 bits whatever the output layer has."""
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
            for name, shape in factors(arch)
        ]

    def layout(self, arch: Architecture, variant: Variant) -> list[StoredTensor]:
        """Return every weight as the program stores it: an embedding that is the output layer, too,
        is there for both."""
        shapes, options = dict(arch.tensors()), variant.options
        stored = [(EMBEDDING, embedding_encoding(options))]
        stored += [(name, factor_encoding(name, options)) for name, _ in factors(arch)]
        stored += [(name, Encoding("FLOAT32")) for name, shape in shapes.items() if len(shape) == 1]
        tensors = []
        for name, how in stored:
            shape = shapes[name]
            nbytes = how.data_bytes(shape) + how.scale_bytes(shape)
            tensors.append(StoredTensor(name, how.kind, math.prod(shape), nbytes))
        return tensors

    def other_bytes(self, arch: Architecture, source: SourceFiles, variant: Variant) -> int:
        """Return the bytes of the graphs, of cos and sin, of the files that are copied and of the
        runner's tokenizer."""
        context: int = variant.options["context"]
        tables = 2 * 4 * arch.head_dim * context
        is_stripped = source.tokenizer == "sentencepiece"
        own = source.files.get("tokenizer.json", 0) if is_stripped else 0
        return _LAYER_BYTES * arch.layers + tables + own + copied_bytes(source)

    def build_memory(
        self, arch: Architecture, source_bytes: int, variants: Sequence[Variant]
    ) -> int:
        """Return a bound that the weights do not change: they are streamed."""
        return build_memory(arch, [variant.options for variant in variants])

    def judge_memory(
        self, arch: Architecture, variants: Sequence[Variant], window_tokens: int
    ) -> int:
        """Return a bound that holds the cache, and the weights as XNNPACK packs them."""
        return judge_memory(arch, [variant.options for variant in variants], window_tokens)

    def context_limit(self, arch: Architecture, variant: Variant) -> ContextLimit | None:
        """Return the tokens of the cache, whose size is part of the program."""
        context = variant.options["context"]
        if context >= arch.max_positions:
            return None
        return ContextLimit(
            context,
            "the program's KV cache holds no more (option context of the executorch backend)",
        )

    def kv_bytes_per_element(self, variant: Variant) -> float:
        """Return 4: the program's caches are fp32."""
        return 4.0

    def card_sections(self, arch: Architecture, variant: Variant) -> Mapping[str, str]:
        """Return what an app needs to know."""
        return {"In an app": _IN_AN_APP}


def _limit(arch: Architecture) -> ContextLimit:
    """Return the longest context that a program can be made for."""
    limits = [ContextLimit(arch.max_positions, "the model has no more positions")]
    if arch.rope.is_longrope:
        limits.append(
            ContextLimit(
                arch.original_max_positions,
                "the program has longrope's short factors, which the model uses up to there",
            )
        )
    if arch.sliding_window:
        limits.append(
            ContextLimit(
                arch.sliding_window,
                "the model's attention reaches back over a window of that many tokens, which "
                "ExecuTorch's attention does not have",
            )
        )
    return min(limits, key=lambda limit: limit.tokens)


def _name(name: str, options: ExecuTorchOptions) -> str:
    """Return a variant's name, with a context that was asked for: that of a device goes without
    saying."""
    return f"{name}-c{options.context}" if options.context else name


SPEC = ExecuTorchSpec()
