"""genai_config.json: how onnxruntime-genai runs the graphs of an artifact, one after the other (its
model type decoder-pipeline). Standard library only.

A prompt goes in by windows of PROMPT_TOKENS, filled up behind; the cache has room for the whole
context from the start, in one buffer that the last stage writes new keys and values into. Without
`cache_slack` onnxruntime-genai (0.18) would make it as small as a window where the cache is the
CPU's.
"""

from __future__ import annotations

from collections.abc import Sequence

from phibuild.backends.qnn.layout import PROMPT_TOKENS, Part, parts
from phibuild.backends.qnn.names import (
    COS,
    IDS,
    INPUTS,
    LAST,
    LOGITS,
    MASK,
    NEWS,
    PASTS,
    PRESENTS,
    SIN,
    SLOTS,
    TOTAL,
    hidden_name,
)
from phibuild.backends.qnn.socs import SOCS
from phibuild.worker.architecture import Architecture
from phibuild.worker.json_values import JsonDict
from phibuild.worker.requests import Options

CONFIG = "genai_config.json"
CACHE = "cache"
PHASES = {"prompt": PROMPT_TOKENS, "token": 1}
"""What the NPU's graphs are for, and for how many tokens they are."""


def graph_file(name: str) -> str:
    return f"{name}.onnx"


def genai_config(
    arch: Architecture, options: Options, stops: Sequence[int], start: int | None, pad: int
) -> JsonDict:
    """Return the configuration of an artifact whose generation ends at `stops`. `pad` is an id that
    no prompt has."""
    context: int = options["context"]
    ends: int | list[int] = stops[0] if len(stops) == 1 else list(stops)
    ids = {"eos_token_id": ends, "pad_token_id": pad}
    if start is not None:
        ids["bos_token_id"] = start
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "head_size": arch.head_dim,
        "hidden_size": arch.hidden_size,
        "num_attention_heads": arch.heads,
        "num_hidden_layers": arch.layers,
        "num_key_value_heads": arch.kv_heads,
        "inputs": {
            "input_ids": IDS,
            "past_sequence_length": LAST,
            "total_sequence_length": TOTAL,
            "past_key_names": PASTS[0],
            "past_value_names": PASTS[1],
        },
        "outputs": {
            "logits": LOGITS,
            "present_key_names": PRESENTS[0],
            "present_value_names": PRESENTS[1],
        },
        "sliding_window": {
            "window_size": PROMPT_TOKENS,
            "pad_value": 0,
            "alignment": "left",
            "slide_key_value_cache": False,
            "cache_slack": context - PROMPT_TOKENS,
        },
        "pipeline": _pipeline(arch, options),
    }
    model = {
        "type": "decoder-pipeline",
        **ids,
        "context_length": context,
        "vocab_size": arch.vocab_size,
        "decoder": decoder,
    }
    search = {
        "do_sample": False,
        "max_length": context,
        "past_present_share_buffer": True,
    }
    return {"model": model, "search": search}


def _pipeline(arch: Architecture, options: Options) -> list[JsonDict]:
    """Return the stages: vectors, the NPU's graphs of a prompt, those of a token, the cache."""
    layers = range(arch.layers)
    first = [hidden_name(0), COS, SIN, MASK, SLOTS]
    stages = [{INPUTS: _stage(INPUTS, [IDS, LAST, TOTAL], first)}]
    for phase in PHASES:
        for part in parts(arch, options):
            name = f"{phase}-{part.name}"
            stage = _stage(name, *_values(part))
            stage["session_options"] = {
                "session.disable_cpu_ep_fallback": "1",  # an error is better than a slow answer
                "provider_options": [{"QNN": _npu_options(options)}],
            }
            stage["run_on_prompt"] = phase == "prompt"
            stage["run_on_token_gen"] = phase == "token"
            if not part.layers:
                stage["is_lm_head"] = True
            stages.append({name: stage})
    new = [name % layer for layer in layers for name in (*PASTS, *NEWS)]
    present = [name % layer for layer in layers for name in PRESENTS]
    stages.append({CACHE: _stage(CACHE, [SLOTS, *new], present)})
    return stages


def _npu_options(options: Options) -> dict[str, str]:
    """Return the options of the QNN provider on a device."""
    found = {"backend_type": "htp", "htp_performance_mode": "burst"}
    if options["form"] == "context":
        found["soc_model"] = str(SOCS[options["soc"]][0])
    return found


def _values(part: Part) -> tuple[list[str], list[str]]:
    """Return what goes into a part's graphs and comes out of them."""
    before = hidden_name(part.first)
    if not part.layers:
        return [before], [LOGITS]
    pasts = [past % layer for layer in part.layers for past in PASTS]
    news = [new % layer for layer in part.layers for new in NEWS]
    return [before, COS, SIN, MASK, *pasts], [hidden_name(part.end), *news]


def _stage(name: str, inputs: Sequence[str], outputs: Sequence[str]) -> JsonDict:
    return {"filename": graph_file(name), "inputs": list(inputs), "outputs": list(outputs)}
