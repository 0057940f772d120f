"""The llamacpp backend as the core sees it: GGUF for llama.cpp."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from phibuild.backends.base import (
    ContextLimit,
    SourceFiles,
    StoredTensor,
    chosen,
    joined,
    window_limit,
)
from phibuild.backends.calibration import CHUNK_TOKENS, CalibrationText, make_calibration
from phibuild.backends.llamacpp.header import (
    Value,
    align,
    data_bytes,
    encode_tensor_info,
    encode_value,
)
from phibuild.backends.llamacpp.layout import FILE_TYPES, Tensor, tensors
from phibuild.backends.llamacpp.memory import (
    BASE_BYTES,
    BYTES_PER_TOKEN,
    CHUNK_BYTES,
    COMPILER_BYTES,
    LOGITS_COPIES,
    MAX_THREADS,
    PASS_TOKENS,
    WINDOW_COPIES,
)
from phibuild.backends.llamacpp.metadata import imatrix_values, model_values
from phibuild.schema import Contradiction, Device, Frozen, Judging, Precision, Skip, Variant
from phibuild.worker.architecture import Architecture
from phibuild.worker.write_buffers import BUFFERS_BYTES

GgufType = Literal["Q4_K_M", "Q4_0", "Q5_K_M", "IQ4_XS", "Q8_0", "F16", "F32"]

_TYPES: dict[Precision, tuple[GgufType, ...]] = {
    "int4": ("Q4_K_M", "Q4_0", "Q5_K_M", "IQ4_XS"),
    "int8": ("Q8_0",),
    "fp16": ("F16",),
    "fp32": ("F32",),
}
_SMALLEST_BLOCK = 32  # weights of a row; below, llama.cpp silently stores the matrix as F16
_GGUF_PREFIX = 24  # magic, version, number of tensors, number of key/values
_LENGTH_BYTES = 8  # before every string


class LlamaCppOptions(Frozen):
    """Options of the llamacpp backend; None stands for the default of the precision."""

    type: GgufType | None = None
    """GGUF type. int4: Q4_K_M (the usual choice), Q4_0 (the layout that Arm CPUs repack), Q5_K_M
    (larger and closer to the original), IQ4_XS (smallest); int8: Q8_0; fp16: F16; fp32: F32."""
    imatrix: CalibrationText | None = None
    """int4 only: a calibration text (a UTF-8 file, or `embedded`). What its tokens send into each
    matrix decides how much the columns' rounding errors weigh, as with llama-quantize --imatrix."""
    imatrix_tokens: Annotated[int, Field(ge=CHUNK_TOKENS)] = 16384
    """Tokens of that text, in chunks of 512 that are evenly spaced over it."""


class LlamaCppSpec:
    """GGUF files, straight from the checkpoint."""

    name = "llamacpp"
    title = "llama.cpp"
    format = "GGUF"
    library = "gguf"
    copied: tuple[str, ...] = ()
    options: type[BaseModel] = LlamaCppOptions

    def contradiction(self, precision: Precision, options: BaseModel) -> Contradiction | None:
        """Return a type of another precision, or what belongs to int4 alone."""
        assert isinstance(options, LlamaCppOptions)
        allowed = _TYPES[precision]
        if options.type and options.type not in allowed:
            return Contradiction(
                reason=f"GGUF type {options.type} is not {precision}",
                options=("type",),
                remedy=f"{precision} has {', '.join(allowed)}",
            )
        wrong = chosen(options, "type") if precision != "int4" else ()
        if wrong:
            return Contradiction(
                reason=f"an importance matrix guides the search for 4-bit values; {precision} has "
                "none",
                options=wrong,
                remedy=f"remove {joined(wrong)}, which goes with int4",
            )
        return None

    def variant(
        self, precision: Precision, options: BaseModel, device: Device, arch: Architecture
    ) -> Variant | Skip:
        """Return the variant, or why this type cannot be had at this shape."""
        assert isinstance(options, LlamaCppOptions)
        type = options.type or _TYPES[precision][0]
        widths = sorted({arch.hidden_size, arch.intermediate_size})
        odd = [width for width in widths if width % _SMALLEST_BLOCK]
        if odd and FILE_TYPES[type].quantized:
            return Skip(
                reason=f"GGUF packs rows in blocks of {_SMALLEST_BLOCK} weights, this model has "
                f"rows of {odd[0]}: llama.cpp would store them as F16"
            )
        variant = Variant(
            backend=self.name,
            precision=precision,
            name=type,
            format=self.format,
            options={"type": type},
        )
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
            for tensor in _tensors(arch, variant)
            if tensor.source is not None
        ]

    def other_bytes(self, arch: Architecture, source: SourceFiles, variant: Variant) -> int:
        """Return the bytes of header, vocabulary, rope factors and padding. All of it is counted
        but the model's name and a chat template inside tokenizer_config.json."""
        stored = _tensors(arch, variant)
        header = _GGUF_PREFIX + sum(
            size for name, size in source.files.items() if name.endswith(".jinja")
        )
        values = model_values(arch, variant.options["type"], "", {})
        if "imatrix" in variant.options:
            values += imatrix_values(0, 0)
        header += sum(len(encode_value(value)) for value in values)
        header += _vocabulary_bytes(arch, source)
        header += sum(len(encode_tensor_info(tensor, 0)) for tensor in stored)
        return align(header) + _data_besides_weights(stored)

    def build_memory(
        self, arch: Architecture, source_bytes: int, variants: Sequence[Variant]
    ) -> int:
        """Return the bound: interpreter, engine and compiler, a chunk per thread, the buffers of
        files, the vocabulary. Nothing in it grows with the model's weights or with the number of
        variants."""
        fixed = BASE_BYTES + COMPILER_BYTES + BUFFERS_BYTES
        return fixed + MAX_THREADS * CHUNK_BYTES + arch.vocab_size * BYTES_PER_TOKEN

    def judge_memory(
        self, arch: Architecture, variants: Sequence[Variant], window_tokens: int
    ) -> int:
        """Return the bound: interpreter and engine, vocabulary, a window's logits and KV cache and
        a pass's logits and activations in F32, and the packed weights of the largest variant.
        llama.cpp maps the file, but repacks what its kernels for this CPU want in another order
        (Q4_0 and Q4_K with AVX2; every packed type here somewhere)."""
        cached = -(-window_tokens // PASS_TOKENS) * PASS_TOKENS
        cache = 2 * arch.layers * arch.kv_heads * arch.head_dim
        activations = 4 * (arch.hidden_size + arch.intermediate_size) + 2 * arch.heads * cached
        repacked = max(
            sum(
                tensor.nbytes
                for tensor in _tensors(arch, variant)
                if tensor.kind not in ("F32", "F16")
            )
            for variant in variants
        )
        passing = PASS_TOKENS * (LOGITS_COPIES * arch.vocab_size + activations)
        further = (cached - PASS_TOKENS) * WINDOW_COPIES * arch.vocab_size
        wide = passing + further + cached * cache
        return BASE_BYTES + arch.vocab_size * BYTES_PER_TOKEN + 4 * wide + repacked

    def context_limit(self, arch: Architecture, variant: Variant) -> ContextLimit | None:
        """Return the model's window, where it has one."""
        return window_limit(
            arch,
            "the model's attention reaches back over a window of that many tokens, which llama.cpp "
            "leaves out for phi3: beyond it the artifact is another model",
        )

    def judging(self, variant: Variant) -> Judging:
        """llama.cpp itself loads the file."""
        return Judging()

    def kv_bytes_per_element(self, variant: Variant) -> float:
        """Return 2: llama.cpp keeps an F16 cache unless told otherwise."""
        return 2.0

    def usage(self, variant: Variant) -> str:
        """Return the command for llama.cpp's own program."""
        return f'llama-cli -m model-{variant.name}.gguf -p "Why is the sky blue?" -n 128'


def _tensors(arch: Architecture, variant: Variant) -> list[Tensor]:
    return tensors(arch, variant.options["type"], imatrix="imatrix" in variant.options)


def _vocabulary_bytes(arch: Architecture, source: SourceFiles) -> int:
    """Return the bytes of the tokenizer's key/values."""
    sentencepiece = source.tokenizer == "sentencepiece"
    padding = [f"[PAD{number}]" for number in range(min(source.tokens, arch.vocab_size),
                                                     arch.vocab_size)]  # fmt: skip
    total = arch.vocab_size * _LENGTH_BYTES + source.token_bytes + sum(map(len, padding))
    total += arch.vocab_size * 4  # token types
    keys = [
        Value("tokenizer.ggml.model", "str", "llama" if sentencepiece else "gpt2"),
        Value("tokenizer.ggml.pre", "str", "default"),
        Value("tokenizer.ggml.tokens", "array[str]", ()),
        Value("tokenizer.ggml.token_type", "array[i32]", ()),
        Value("tokenizer.chat_template", "str", ""),
        *(
            Value(f"tokenizer.ggml.{role}_token_id", "u32", 0)
            for role in ("bos", "eos", "unknown", "padding")
        ),
        *(Value(f"tokenizer.ggml.add_{role}_token", "bool", False) for role in ("bos", "eos")),
    ]
    if sentencepiece:
        keys.append(Value("tokenizer.ggml.scores", "array[f32]", ()))
        total += arch.vocab_size * 4
    else:
        keys.append(Value("tokenizer.ggml.merges", "array[str]", ()))
        total += source.merges * _LENGTH_BYTES + source.merge_bytes
    return total + sum(len(encode_value(key)) for key in keys)


def _data_besides_weights(stored: Sequence[Tensor]) -> int:
    """Return the bytes of the data that are no weights: rope factors and padding."""
    return data_bytes(stored) - sum(tensor.nbytes for tensor in stored if tensor.source)


SPEC = LlamaCppSpec()
