"""The llamacpp backend as the core sees it: variants, skips, sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from phibuild.backends.base import (
    BackendSpec,
    Best,
    ContextLimit,
    MatrixTypes,
    SourceFiles,
    StoredTensor,
    changed,
)
from phibuild.backends.calibration import calibrated_variant, make_calibration
from phibuild.backends.common import cached_variant, make_variant, window_limit
from phibuild.backends.llamacpp import cache, hexagon
from phibuild.backends.llamacpp.layout import FILE_TYPES, GRIDS, variant_tensors
from phibuild.backends.llamacpp.matrices import matrices, sensitivity_grid
from phibuild.backends.llamacpp.matrix import misfit
from phibuild.backends.llamacpp.memory import build_memory, judge_memory
from phibuild.backends.llamacpp.options import (
    TYPES,
    LlamaCppOptions,
    contradiction,
    is_matrix_file,
    open_matrix,
)
from phibuild.backends.mixed import UNMIXED, mixed_variant
from phibuild.schema import Contradiction, Device, Misfit, Precision, Skip, Variant
from phibuild.worker.architecture import Architecture

_SMALLEST_BLOCK = 32  # weights of a row; below, llama.cpp silently stores the matrix as F16
# Of a token or a merge: before its text, and beside it.
_LENGTH_BYTES, _TYPE_BYTES, _SCORE_BYTES = 8, 4, 4


class LlamaCppSpec(BackendSpec[LlamaCppOptions]):
    """GGUF files, straight from the checkpoint."""

    name = "llamacpp"
    title = "llama.cpp"
    format = "GGUF"
    library = "gguf"
    toolchain_bytes = 360_000_000
    options = LlamaCppOptions
    best = (
        # The Hexagon NPU's kernels take Q4_0 alone of these.
        Best({**UNMIXED, "type": "Q4_0", "method": "gptq"}, accelerator=hexagon.NPU),
        Best({**UNMIXED, "type": "Q5_K_M", "method": "gptq"}),
        # Rows that are no whole blocks of 256.
        Best({**UNMIXED, "type": "Q5_K_M", "imatrix": "embedded"}),
    )

    def contradiction(self, precision: Precision, options: LlamaCppOptions) -> Contradiction | None:
        """Return a type of another precision, or what belongs to int4 alone."""
        return contradiction(precision, options)

    def variant(
        self, precision: Precision, options: LlamaCppOptions, device: Device, arch: Architecture
    ) -> Variant | Skip | Misfit:
        """Return the variant, why this type cannot be had at this shape, or that an importance
        matrix or names of tensors are of another model."""
        options = hexagon.with_defaults(options, precision, device)
        type = options.type or TYPES[precision][0]
        widths = sorted({arch.hidden_size, arch.intermediate_size})
        odd = [width for width in widths if width % _SMALLEST_BLOCK]
        if odd and FILE_TYPES[type].quantized:
            return Skip(
                reason=f"GGUF packs rows in blocks of {_SMALLEST_BLOCK} weights, this model has "
                f"rows of {odd[0]}: llama.cpp would store them as F16"
            )
        if options.is_gptq:
            span = GRIDS[FILE_TYPES[type].base].span
            odd = [width for width in widths if width % span]
            if odd and options.type:
                return Skip(
                    reason=f"{type} packs rows in blocks of {span} weights, this model has rows of "
                    f"{odd[0]}, which it stores in other types; GPTQ can make Q4_0 of it"
                )
            type = "Q4_0" if odd else type
        kind = options.kv_cache or cache.DEFAULT
        if reason := cache.odd_head(kind, arch.head_dim):
            return Skip(reason=reason)
        plain = make_variant(self, precision, type, {"type": type})
        grid = sensitivity_grid(type)
        made = changed(
            self._calibrated(plain, options, arch),
            lambda variant: mixed_variant(variant, options, grid, self.matrices(arch, variant)),
        )
        if kind == cache.DEFAULT:
            return made
        return changed(made, lambda variant: cached_variant(variant, kind, cache.BITS[kind]))

    def _calibrated(
        self, variant: Variant, options: LlamaCppOptions, arch: Architecture
    ) -> Variant | Misfit:
        type = variant.name
        if options.is_gptq:
            return calibrated_variant(variant, options, GRIDS[FILE_TYPES[variant.name].base])
        if options.imatrix is None:
            return variant
        variant = variant.model_copy(update={"name": f"{type}-imatrix"})
        if is_matrix_file(options.imatrix):
            return _of_file(variant, options.imatrix, arch)
        calibration = make_calibration(options.imatrix, options.imatrix_tokens)
        content = {"imatrix": calibration.sha256, "imatrix_tokens": calibration.tokens}
        return variant.model_copy(
            update={"options": {**variant.options, **content}, "calibration": calibration}
        )

    def matrices(self, arch: Architecture, variant: Variant) -> list[MatrixTypes]:
        """Return every matrix, with the types of llama.cpp that are at least as large as the
        file's own."""
        return matrices(arch, variant.options)

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
        """Return the bytes of the type that llama.cpp is told to take, F16 unless it is."""
        return cache.bytes_per_element(variant.options.get("kv_cache", cache.DEFAULT))

    def run_command(self, variant: Variant) -> str:
        """Return the command for llama.cpp's own program. Values are quantized with flash attention
        alone."""
        kind = variant.options.get("kv_cache")
        flags = f" --flash-attn on --cache-type-k {kind} --cache-type-v {kind}" if kind else ""
        return f'llama-cli -m model-{variant.name}.gguf{flags} -p "Why is the sky blue?" -n 128'

    def card_sections(self, arch: Architecture, variant: Variant) -> Mapping[str, str]:
        """Return what of the file a Snapdragon's NPU runs, if it runs any."""
        text = hexagon.on_npu(arch, variant)
        return {"On a Hexagon NPU": text} if text else {}


def _of_file(variant: Variant, source: str, arch: Architecture) -> Variant | Misfit:
    """Return the variant that is made with the importance matrix of a file."""
    matrix, file = open_matrix(source)
    # llama-quantize writes the file's name into what it makes; bytes that are no UTF-8 it has not.
    name = Path(source).name.encode("utf-8", "replace").decode()
    content = {"imatrix": file.sha256, "imatrix_file": name}
    options = {**variant.options, **content}
    if why := misfit(matrix, variant_tensors(arch, options)):
        return Misfit(
            option="imatrix",
            reason=f"{source!r} {why}",
            remedy="give one that was made of this model, or a calibration text",
        )
    return variant.model_copy(update={"options": options, "file": file})


SPEC = LlamaCppSpec()
