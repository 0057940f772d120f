"""llama.cpp's C structures and functions that running a model needs, as ctypes declarations.

From include/llama.h at the version inside the locked xllamacpp. The structures change between
versions, so `declare` compares the library's own defaults with what they must be, field by field,
and refuses a library whose structures lie otherwise.
"""

from __future__ import annotations

import ctypes

from phibuild.worker.protocol import WorkerError

FLASH_ATTENTION_OFF, FLASH_ATTENTION_ON = 0, 1
VOCABULARY_SENTENCEPIECE = 1  # llama_vocab_type
TYPE_F32 = 0
TYPE_F16 = 1
LOG_LEVEL_WARN = 3
LOG_LEVEL_ERROR = 4
_AUTO = -1
_int, _uint, _float, _bool = ctypes.c_int32, ctypes.c_uint32, ctypes.c_float, ctypes.c_bool
_pointer, _text = ctypes.c_void_p, ctypes.c_char_p

LOG_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


class ModelParams(ctypes.Structure):
    """`llama_model_params`."""

    _fields_ = (
        ("devices", _pointer),
        ("tensor_buft_overrides", _pointer),
        ("n_gpu_layers", _int),
        ("split_mode", _int),
        ("load_mode", _int),
        ("lazy_mode", _int),
        ("main_gpu", _int),
        ("tensor_split", _pointer),
        ("progress_callback", _pointer),
        ("progress_callback_user_data", _pointer),
        ("kv_overrides", _pointer),
        ("vocab_only", _bool),
        ("check_tensors", _bool),
        ("use_extra_bufts", _bool),
        ("no_host", _bool),
        ("no_alloc", _bool),
        ("load_mtp", _bool),
    )


class ContextParams(ctypes.Structure):
    """`llama_context_params`; `callbacks` are those that are never set here."""

    _fields_ = (
        ("n_ctx", _uint),
        ("n_batch", _uint),
        ("n_ubatch", _uint),
        ("n_seq_max", _uint),
        ("n_rs_seq", _uint),
        ("n_outputs_max", _uint),
        ("n_outputs_max_per_seq", _uint),
        ("n_threads", _int),
        ("n_threads_batch", _int),
        ("ctx_type", _int),
        ("rope_scaling_type", _int),
        ("pooling_type", _int),
        ("attention_type", _int),
        ("flash_attn_type", _int),
        ("rope_freq_base", _float),
        ("rope_freq_scale", _float),
        ("yarn_ext_factor", _float),
        ("yarn_attn_factor", _float),
        ("yarn_beta_fast", _float),
        ("yarn_beta_slow", _float),
        ("yarn_orig_ctx", _uint),
        ("defrag_thold", _float),
        ("cb_eval", _pointer),
        ("cb_eval_user_data", _pointer),
        ("type_k", _int),
        ("type_v", _int),
        ("callbacks", _pointer * 3),
        ("embeddings", _bool),
        ("offload_kqv", _bool),
        ("no_perf", _bool),
        ("op_offload", _bool),
        ("swa_full", _bool),
        ("kv_unified", _bool),
        ("samplers", _pointer),
        ("n_samplers", ctypes.c_size_t),
        ("ctx_other", _pointer),
    )


class Batch(ctypes.Structure):
    """`llama_batch`; without positions and sequences, tokens go on where sequence 0 ends."""

    _fields_ = (
        ("n_tokens", _int),
        ("token", ctypes.POINTER(_int)),
        ("embd", _pointer),
        ("pos", _pointer),
        ("n_seq_id", _pointer),
        ("seq_id", _pointer),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


# Defaults that tell one layout from another: if a field moved, one of these no longer holds.
_MODEL_DEFAULTS = {
    "devices": None,
    "tensor_buft_overrides": None,
    "n_gpu_layers": _AUTO,
    "split_mode": 1,
    "main_gpu": 0,
    "tensor_split": None,
    "progress_callback": None,
    "kv_overrides": None,
    "vocab_only": False,
    "check_tensors": False,
    "use_extra_bufts": True,
    "no_host": False,
    "no_alloc": False,
}
_CONTEXT_DEFAULTS = {
    "n_ctx": 512,
    "n_batch": 2048,
    "n_ubatch": 512,
    "n_seq_max": 1,
    "n_outputs_max": 0,
    "n_outputs_max_per_seq": 1,
    "n_threads": 4,
    "n_threads_batch": 4,
    "ctx_type": 0,
    "rope_scaling_type": _AUTO,
    "pooling_type": _AUTO,
    "attention_type": _AUTO,
    "flash_attn_type": _AUTO,
    "rope_freq_base": 0.0,
    "rope_freq_scale": 0.0,
    "yarn_ext_factor": -1.0,
    "yarn_attn_factor": -1.0,
    "yarn_beta_fast": -1.0,
    "yarn_beta_slow": -1.0,
    "yarn_orig_ctx": 0,
    "defrag_thold": -1.0,
    "cb_eval": None,
    "type_k": TYPE_F16,
    "type_v": TYPE_F16,
    "embeddings": False,
    "offload_kqv": True,
    "no_perf": True,
    "op_offload": True,
    "swa_full": True,
    "kv_unified": False,
    "samplers": None,
    "n_samplers": 0,
    "ctx_other": None,
}


def declare(engine: ctypes.CDLL) -> None:
    """Declare the functions on the loaded library and check its structures.

    Raises WorkerError if the library is of a version whose structures lie otherwise.
    """
    for name, result, arguments in (
        ("llama_backend_init", None, []),
        ("llama_log_set", None, [LOG_CALLBACK, _pointer]),
        ("llama_model_default_params", ModelParams, []),
        ("llama_context_default_params", ContextParams, []),
        ("llama_model_load_from_file", _pointer, [_text, ModelParams]),
        ("llama_model_free", None, [_pointer]),
        ("llama_model_get_vocab", _pointer, [_pointer]),
        ("llama_init_from_model", _pointer, [_pointer, ContextParams]),
        ("llama_free", None, [_pointer]),
        ("llama_n_ctx", _uint, [_pointer]),
        ("llama_n_batch", _uint, [_pointer]),
        ("llama_get_memory", _pointer, [_pointer]),
        ("llama_memory_clear", None, [_pointer, _bool]),
        ("llama_decode", _int, [_pointer, Batch]),
        ("llama_get_logits", ctypes.POINTER(_float), [_pointer]),
        ("llama_vocab_n_tokens", _int, [_pointer]),
        ("llama_vocab_get_text", _text, [_pointer, _int]),
        ("llama_vocab_type", _int, [_pointer]),
        ("llama_vocab_is_eog", _bool, [_pointer, _int]),
        ("llama_tokenize", _int, [_pointer, _text, _int, _pointer, _int, _bool, _bool]),
        ("llama_token_to_piece", _int, [_pointer, _int, _pointer, _int, _int, _bool]),
    ):
        function = getattr(engine, name)
        function.restype, function.argtypes = result, arguments
    for params, defaults in (
        (engine.llama_model_default_params(), _MODEL_DEFAULTS),
        (engine.llama_context_default_params(), _CONTEXT_DEFAULTS),
    ):
        for field, expected in defaults.items():
            found = getattr(params, field)
            if found != expected:
                raise WorkerError(
                    f"this xllamacpp has another {type(params).__name__} than the locked version: "
                    f"{field} is {found!r}, not {expected!r}; make the toolchain anew"
                )
