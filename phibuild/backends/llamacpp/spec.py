"""The llamacpp backend as the core sees it: variants, skips, sizes."""

from __future__ import annotations

from collections.abc import Sequence

from phibuild.backends.base import BackendSpec, ContextLimit, SourceFiles, StoredTensor
from phibuild.backends.calibration import calibrated_variant, make_calibration
from phibuild.backends.common import make_variant, window_limit
from phibuild.backends.llamacpp.layout import FILE_TYPES, variant_tensors
from phibuild.backends.llamacpp.memory import build_memory, judge_memory
from phibuild.backends.llamacpp.options import TYPES, LlamaCppOptions, contradiction
from phibuild.schema import Contradiction, Device, Precision, Skip, Variant
from phibuild.worker.architecture import Architecture
from phibuild.worker.grids import Grid

_SMALLEST_BLOCK = 32  # weights of a row; below, llama.cpp silently stores the matrix as F16
# Of a token or a merge: before its text, and beside it.
_LENGTH_BYTES, _TYPE_BYTES, _SCORE_BYTES = 8, 4, 4


class LlamaCppSpec(BackendSpec[LlamaCppOptions]):
    """GGUF files, straight from the checkpoint."""

    name = "llamacpp"
    title = "llama.cpp"
    format = "GGUF"
    library = "gguf"
    options = LlamaCppOptions

    def contradiction(self, precision: Precision, options: LlamaCppOptions) -> Contradiction | None:
        """Return a type of another precision, or what belongs to int4 alone."""
        return contradiction(precision, options)

    def variant(
        self, precision: Precision, options: LlamaCppOptions, device: Device, arch: Architecture
    ) -> Variant | Skip:
        """Return the variant, or why this type cannot be had at this shape."""
        type = "Q4_0" if options.is_gptq else options.type or TYPES[precision][0]
        widths = sorted({arch.hidden_size, arch.intermediate_size})
        odd = [width for width in widths if width % _SMALLEST_BLOCK]
        if odd and FILE_TYPES[type].quantized:
            return Skip(
                reason=f"GGUF packs rows in blocks of {_SMALLEST_BLOCK} weights, this model has "
                f"rows of {odd[0]}: llama.cpp would store them as F16"
            )
        variant = make_variant(self, precision, type, {"type": type})
        if options.is_gptq:
            return calibrated_variant(variant, options, Grid(4, 32, "middle", "F16"))
        if options.imatrix is None:
            return variant
        calibration = make_calibration(options.imatrix, options.imatrix_tokens)
        content = {"imatrix": calibration.sha256, "imatrix_tokens": calibration.tokens}
        return variant.model_copy(
            update={
                "name": f"{type}-imatrix",
                "options": {**variant.options, **content},
                "calibration": calibration,
            }
        )

    def layout(self, arch: Architecture, variant: Variant) -> list[StoredTensor]:
        """Return every weight; the rope factors, which the file also has, are none."""
        return [
            StoredTensor(tensor.name, tensor.kind, tensor.parameters, tensor.nbytes)
            for tensor in variant_tensors(arch, variant.options)
            if tensor.source is not None
        ]

    def other_bytes(self, arch: Architecture, source: SourceFiles, variant: Variant) -> int:
        """Return the bytes of the vocabulary."""
        tokens = arch.vocab_size * (_LENGTH_BYTES + _TYPE_BYTES) + source.token_bytes
        if source.tokenizer == "sentencepiece":
            return tokens + arch.vocab_size * _SCORE_BYTES
        return tokens + source.merges * _LENGTH_BYTES + source.merge_bytes

    def build_memory(
        self, arch: Architecture, source_bytes: int, variants: Sequence[Variant]
    ) -> int:
        """Return a bound that grows neither with the weights nor with the variants: rows are
        streamed."""
        return build_memory(arch.vocab_size)

    def judge_memory(
        self, arch: Architecture, variants: Sequence[Variant], window_tokens: int
    ) -> int:
        """Return a bound that holds the packed weights of the largest variant."""
        return judge_memory(arch, [variant.options for variant in variants], window_tokens)

    def context_limit(self, arch: Architecture, variant: Variant) -> ContextLimit | None:
        """Return the model's window, where it has one."""
        return window_limit(arch, "llama.cpp leaves out for phi3")

    def kv_bytes_per_element(self, variant: Variant) -> float:
        """Return 2: llama.cpp keeps an F16 cache unless told otherwise."""
        return 2.0

    def run_command(self, variant: Variant) -> str:
        """Return the command for llama.cpp's own program."""
        return f'llama-cli -m model-{variant.name}.gguf -p "Why is the sky blue?" -n 128'


SPEC = LlamaCppSpec()
