"""Run one artifact on a GPU, or on the CPU: benchmarks/on_gpu.py starts it in a runtime's Python.

    python on_gpu_run.py BACKEND ARTIFACT WINDOWS.npy LOGITS.npy cuda|cpu

Writes the float32 logits [W, T, V] of windows [W, T] of ids; prints {"prefill", "decode"}, tokens
per second, the first the median of the windows and the second of 128 tokens after 16. Numpy and the
runtime alone. Ends with an error where the runtime would not use what it is told to.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

_PROMPT, _STEPS = 16, 128


def ort_genai(folder: Path, device: str) -> tuple[Callable[[Any], Any], Callable[[Any], float]]:
    """Return what gives the logits of one window, and what decodes and gives the seconds."""
    if device == "cuda":
        import onnxruntime

        onnxruntime.preload_dlls()  # of the packages nvidia-*, where the system has no CUDA
    import onnxruntime_genai as og

    config = og.Config(str(folder))
    if device == "cpu":
        config.clear_providers()
    model = og.Model(config)
    if model.device_type.lower() != device:
        raise SystemExit(f"onnxruntime-genai runs it on {model.device_type}, not on {device}")

    def generator(capacity: int) -> Any:
        parameters = og.GeneratorParams(model)
        parameters.set_search_options(max_length=capacity, do_sample=False)
        return og.Generator(model, parameters)

    def logits(ids: Any) -> Any:
        fresh = generator(len(ids) + 1)
        fresh.append_tokens(ids.astype(np.int32))
        return np.asarray(fresh.get_output("logits"))[0].astype(np.float32)

    def decode(ids: Any) -> float:
        fresh = generator(len(ids) + _STEPS + 1)
        fresh.append_tokens(ids.astype(np.int32))
        started = time.perf_counter()
        for token in range(_STEPS):
            fresh.append_tokens(np.array([int(ids[token % len(ids)])], np.int32))
            fresh.get_output("logits")
        return time.perf_counter() - started

    return logits, decode


def pytorch(folder: Path, device: str) -> tuple[Callable[[Any], Any], Callable[[Any], float]]:
    """The same by Transformers, in the types of the artifact."""
    import torch
    from transformers import AutoModelForCausalLM

    where = torch.device(device)
    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype="auto").to(where).eval()

    torch.set_grad_enabled(False)

    def logits(ids: Any) -> Any:
        given = torch.from_numpy(ids[None].astype(np.int64)).to(where)
        return model(given).logits[0].float().cpu().numpy()

    def decode(ids: Any) -> float:
        cache = model(torch.from_numpy(ids[None].astype(np.int64)).to(where)).past_key_values
        started = time.perf_counter()
        for token in range(_STEPS):
            given = torch.tensor([[int(ids[token % len(ids)])]], device=where)
            out = model(given, past_key_values=cache)
            cache = out.past_key_values
            out.logits[0, 0, 0].item()  # waits for the GPU
        return time.perf_counter() - started

    return logits, decode


def main() -> None:
    backend, artifact, windows_file, logits_file, device = sys.argv[1:]
    windows = np.load(windows_file)
    logits, decode = {"ort_genai": ort_genai, "pytorch": pytorch}[backend](Path(artifact), device)
    logits(windows[0])  # the first pass picks kernels
    made, seconds = [], []
    for ids in windows:
        started = time.perf_counter()
        made.append(logits(ids))
        seconds.append(time.perf_counter() - started)
    np.save(logits_file, np.stack(made))
    decode(windows[0][:_PROMPT])
    rates = {
        "prefill": windows.shape[1] / float(np.median(seconds)),
        "decode": _STEPS / decode(windows[0][:_PROMPT]),
    }
    print(json.dumps(rates))


if __name__ == "__main__":
    main()
