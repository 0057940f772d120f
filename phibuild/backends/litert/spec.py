"""The litert backend as the core sees it: variants, skips, sizes."""

from __future__ import annotations

from collections.abc import Iterator

from phibuild.backends.base import Best, SourceFiles
from phibuild.backends.common import facts_bytes, tokenizer_bytes
from phibuild.backends.litert.layout import PREFILL_TOKENS, encoding, integers
from phibuild.backends.litert.memory import build_memory, judge_memory
from phibuild.backends.litert.options import LiteRtOptions
from phibuild.backends.mixed import UNMIXED
from phibuild.backends.written import WrittenSpec
from phibuild.schema import Options, Variant
from phibuild.worker.architecture import Architecture
from phibuild.worker.encodings import Encoding
from phibuild.worker.grids import Grid

_LAYER_BYTES = 15_000
"""Of a layer's operators and tensors in the flatbuffer, in both signatures."""
_COMPRESSED = 0.35
"""What zlib leaves of a tokenizer.json."""


class LiteRtSpec(WrittenSpec[LiteRtOptions]):
    """LiteRT models, and bundles of them for LiteRT-LM."""

    name = "litert"
    title = "LiteRT (LiteRT-LM)"
    format = "LiteRT"
    library = "litert-lm"
    toolchain_bytes = 160_000_000
    options = LiteRtOptions
    best = (Best({**UNMIXED, "group_size": 32, "method": "gptq"}),)
    full = "the model's KV cache holds no more"
    lacking = "LiteRT-LM's mask does not have"
    longest = 4096
    step = fewest = PREFILL_TOKENS
    building = staticmethod(build_memory)
    opening = staticmethod(judge_memory)

    def besides(self, options: LiteRtOptions) -> dict[str, object]:
        return {"container": options.container}

    def integers(self, bits: int, group_size: int) -> Encoding:
        return integers(bits, group_size)

    def grid(self, arch: Architecture, group_size: int) -> Grid:
        """Return the grid whose scales XNNPACK takes: positive ones alone."""
        return Grid(4, group_size, "middle", "BF16", negative=False, head=True)

    def factors(self, arch: Architecture) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield all matrices."""
        return ((name, shape) for name, shape in arch.tensors() if len(shape) == 2)

    def stored(
        self, arch: Architecture, options: Options
    ) -> Iterator[tuple[str, tuple[int, ...], Encoding]]:
        for name, shape in arch.tensors():
            yield name, shape, encoding(name, shape, options)

    def other_bytes(self, arch: Architecture, source: SourceFiles, variant: Variant) -> int:
        """Return the bytes of the graphs, of the bundle's tokenizer and of the files that are
        copied."""
        graphs = _LAYER_BYTES * arch.layers
        tokenizer = 0.0
        if variant.options["container"] == "litertlm":
            tokenizer = _COMPRESSED * tokenizer_bytes(source)
        return graphs + round(tokenizer) + facts_bytes(source)

    def kv_bytes_per_element(self, variant: Variant) -> float:
        """Return 4: the graph's caches are fp32."""
        return 4.0

    def run_command(self, variant: Variant) -> str:
        """Return the command of LiteRT-LM, or Python that opens the model."""
        if variant.options["container"] == "litertlm":
            return 'litert-lm run model.litertlm --prompt "Why is the sky blue?"'
        return super().run_command(variant)


SPEC = LiteRtSpec()
