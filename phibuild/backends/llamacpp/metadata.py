"""The key/values of a Phi model's GGUF file, except the tokenizer's. Standard library only.

Keys and values are those that llama.cpp's converter writes for `phi3` (conversion/phi.py), less
what it guesses from a folder's name or takes from the model card: basename, finetune, version,
organization, licence, tags. The same checkpoint gives the same bytes in whatever folder it lies.
"""

from __future__ import annotations

import re

from phibuild.backends.llamacpp.header import Value, ValueType
from phibuild.backends.llamacpp.layout import FILE_TYPES
from phibuild.backends.llamacpp.matrix import ImportanceMatrix
from phibuild.worker.architecture import Architecture
from phibuild.worker.json_values import JsonObject

_LONGEST_TEXT = 127
_QUANTIZATION_VERSION = 2  # GGML_QNT_VERSION in ggml.h
# generation_config.json -> general.sampling.*, llama.cpp's defaults for this model
_SAMPLING: tuple[tuple[str, str, ValueType], ...] = (
    ("top_k", "top_k", "i32"),
    ("top_p", "top_p", "f32"),
    ("min_p", "min_p", "f32"),
    ("temperature", "temp", "f32"),
    ("repetition_penalty", "penalty_repeat", "f32"),
)
_PHI3 = re.compile(r"phi-?3", re.IGNORECASE)


def model_values(
    arch: Architecture, file_type: str, name: str, generation: JsonObject
) -> list[Value]:
    """Return the key/values that describe the model. `name` is what `general_name` returns,
    `generation` the content of generation_config.json."""
    values = [
        Value("general.architecture", "str", "phi3"),
        Value("general.type", "str", "model"),
        *(
            Value(f"general.sampling.{key}", kind, int(number) if kind == "i32" else float(number))
            for source, key, kind in _SAMPLING
            if (number := generation.get(source)) is not None
        ),
        Value("general.name", "str", name),
        Value("general.size_label", "str", size_label(arch.parameters)),
        Value("phi3.context_length", "u32", arch.max_positions),
        # llama.cpp needs this of every phi3 file, unscaled Phi-4 too
        Value("phi3.rope.scaling.original_context_length", "u32", arch.original_max_positions),
        Value("phi3.embedding_length", "u32", arch.hidden_size),
        Value("phi3.feed_forward_length", "u32", arch.intermediate_size),
        Value("phi3.block_count", "u32", arch.layers),
        Value("phi3.attention.head_count", "u32", arch.heads),
        Value("phi3.attention.head_count_kv", "u32", arch.kv_heads),
        Value("phi3.attention.layer_norm_rms_epsilon", "f32", arch.norm_eps),
        Value("phi3.rope.dimension_count", "u32", arch.rotary_dim),
        Value("phi3.rope.freq_base", "f32", arch.rope.theta),
        # zero is how the format says that there is no window
        Value("phi3.attention.sliding_window", "u32", arch.sliding_window or 0),
    ]
    if arch.rope.is_longrope:
        values.append(Value("phi3.rope.scaling.attn_factor", "f32", arch.attention_factor))
    values += [
        Value("general.file_type", "u32", FILE_TYPES[file_type].id),
        Value("general.quantization_version", "u32", _QUANTIZATION_VERSION),
    ]
    return values


def imatrix_values(matrix: ImportanceMatrix, file: str | None) -> list[Value]:
    """Return the key/values that tell of an importance matrix, those that llama-quantize writes:
    the file that it came from, if it came from one, and the text; how many matrices it weighs, and
    the chunks of text it comes from. A file's name stands without its folder."""
    counts = [Value("quantize.imatrix.entries_count", "u32", len(matrix.entries))]
    if matrix.chunks:
        counts.append(Value("quantize.imatrix.chunks_count", "u32", matrix.chunks))
    texts = (("file", file), ("dataset", next(iter(matrix.datasets), None)))
    return [
        *(Value(f"quantize.imatrix.{key}", "str", _cut(text)) for key, text in texts if text),
        *counts,
    ]


def _cut(text: str) -> str:
    """Return what llama-quantize keeps of a text (`val_str` of llama_model_kv_override), in whole
    characters."""
    return text.encode("utf-8", "replace")[:_LONGEST_TEXT].decode("utf-8", "ignore")


def general_name(model: str, *, strips_after_special: bool) -> str:
    """Return the name to write into the file.

    llama.cpp takes the white space after special tokens away if, and only if, the lower-cased
    `general.name` contains "phi-3" or "phi3" (llama-vocab.cpp), and fails to load such a file if
    the vocabulary has no `</s>`. So the name has to say what this tokenizer does:
    `strips_after_special`.
    """
    if strips_after_special:
        return model if _PHI3.search(model) else f"{model} (Phi-3)"
    return _PHI3.sub("Phi 3", model)


def size_label(parameters: int) -> str:
    """Return the number of parameters as llama.cpp writes it: two digits and K, M, B or T."""
    units = ((1e12, "T"), (1e9, "B"), (1e6, "M"))
    factor, suffix = next((unit for unit in units if parameters > unit[0]), (1e3, "K"))
    scaled = parameters / factor
    digits = max(2 - len(str(round(scaled)).lstrip("0")), 0)
    return f"{scaled:.{digits}f}{suffix}"
