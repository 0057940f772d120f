"""The executorch backend as the core sees it: variants, skips, sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from phibuild.backends.base import Best, SourceFiles
from phibuild.backends.common import facts_bytes, tokenizer_bytes
from phibuild.backends.executorch.layout import (
    EMBEDDING,
    PREFILL_TOKENS,
    embedding_encoding,
    factor_encoding,
    factors,
    integers,
    stored_as,
)
from phibuild.backends.executorch.memory import build_memory, judge_memory
from phibuild.backends.executorch.options import ExecuTorchOptions
from phibuild.backends.mixed import UNMIXED
from phibuild.backends.written import WrittenSpec
from phibuild.schema import Options, Variant
from phibuild.worker.architecture import Architecture
from phibuild.worker.encodings import Encoding
from phibuild.worker.grids import Grid

_LAYER_BYTES = 12_000
"""Of a layer's graph, and of its instructions in both methods."""
_IN_AN_APP = """\
ExecuTorch's language model runner (`TextLLMRunner`; on Android `LlmModule`, on iOS `TextRunner`)
takes `model.pte` and the tokenizer: `runner_tokenizer.json` where that is here, `tokenizer.json`
otherwise. The runner decodes token by token; by the `tokenizer.json` of such models it would lose
the space before each. It applies no chat template: give it the text of `chat_template.jinja`, as
`phibuild run` renders it. It stops at the ids that the program names (`get_eos_ids`); the method
`logits` gives those of all tokens of a call, to measure by."""


class ExecuTorchSpec(WrittenSpec[ExecuTorchOptions]):
    """ExecuTorch programs for XNNPACK: phones' and boards' CPUs."""

    name = "executorch"
    title = "ExecuTorch (XNNPACK)"
    format = "ExecuTorch"
    library = "executorch"
    toolchain_bytes = 880_000_000
    options = ExecuTorchOptions
    best = (Best({**UNMIXED, "group_size": 32, "method": "gptq"}),)
    full = "the program's KV cache holds no more"
    lacking = "ExecuTorch's attention does not have"
    longest = 4096
    step = fewest = PREFILL_TOKENS
    building = staticmethod(build_memory)
    opening = staticmethod(judge_memory)

    def integers(self, bits: int, group_size: int) -> Encoding:
        return integers(bits, group_size)

    def grid(self, arch: Architecture, group_size: int) -> Grid:
        """Return the grid whose scales XNNPACK takes: positive ones alone."""
        return Grid(4, group_size, "middle", "BF16", negative=False, head=True)

    def factors(self, arch: Architecture) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield what XNNPACK multiplies by: the embedding has 8 bits whatever the output layer
        has."""
        return factors(arch)

    def stored(
        self, arch: Architecture, options: Options
    ) -> Iterator[tuple[str, tuple[int, ...], Encoding]]:
        """Yield all that a program stores: an embedding that is the output layer, too, is there for
        both."""
        for name, shape in arch.tensors():
            if len(shape) == 1:
                yield name, shape, stored_as("FLOAT32")
            if name == EMBEDDING:
                yield name, shape, embedding_encoding(options)
        for name, shape in factors(arch):
            yield name, shape, factor_encoding(name, options)

    def other_bytes(self, arch: Architecture, source: SourceFiles, variant: Variant) -> int:
        """Return the bytes of the graphs, of cos and sin, of the files that are copied and of the
        runner's tokenizer."""
        context: int = variant.options["context"]
        tables = 2 * 4 * arch.head_dim * context
        is_stripped = source.tokenizer == "sentencepiece"
        own = tokenizer_bytes(source) if is_stripped else 0
        return _LAYER_BYTES * arch.layers + tables + own + facts_bytes(source)

    def kv_bytes_per_element(self, variant: Variant) -> float:
        """Return 4: the program's caches are fp32."""
        return 4.0

    def card_sections(self, arch: Architecture, variant: Variant) -> Mapping[str, str]:
        """Return what an app needs to know."""
        return {"In an app": _IN_AN_APP}


SPEC = ExecuTorchSpec()
