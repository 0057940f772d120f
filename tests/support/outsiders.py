"""What Transformers and PEFT themselves make of sources that phibuild mends or refuses.

Runs in a vendor's environment: `python outsiders.py` reads a JSON object of questions by name, each
[what, order], from standard input and writes the answers by name to standard output: all in one
process, since importing takes longer. An answer of {"error": ...} is what was raised.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def _load(source: str, **options: Any) -> tuple[Any, dict[str, list[str]]]:
    import torch
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(
        source, output_loading_info=True, **{"dtype": torch.float32, **options}
    )
    return model, {key: sorted(map(str, value)) for key, value in info.items()}


def _logits(model: Any) -> Any:
    import torch

    ids = torch.tensor([[(7 * n + 3) % 1000 for n in range(40)]])
    with torch.inference_mode():
        model(ids[:, :2])  # first calls by one thread: pytorch/pytorch#188792
        return model(ids).logits


def _apart(one: Any, other: Any) -> float:
    return float((one - other).abs().max() / other.abs().max())


def load(source: str) -> dict[str, list[str]]:
    """Return the tensors that Transformers missed, which it leaves random, and those that it did
    not expect, which it leaves out."""
    return _load(source)[1]


def apart(source: str, base: str) -> float:
    """Return how far the logits of two folders are apart, of the largest."""
    return _apart(_logits(_load(source)[0]), _logits(_load(base)[0]))


def value(source: str, tensor: str, dtype: str) -> str:
    """Return the first value of a tensor as it is loaded in a type."""
    import torch

    return str(_load(source, dtype=getattr(torch, dtype))[0].state_dict()[tensor].flatten()[0])


def tied(source: str) -> bool:
    model = _load(source)[0]
    return bool(model.lm_head.weight is model.model.embed_tokens.weight)


def biased(base: str, output: str) -> float:
    """Save a Llama of the shape of a Phi with biases, and return how far its logits are from those
    without the biases."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    phi = json.loads((Path(base) / "config.json").read_text(encoding="utf-8"))
    names = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads",
             "num_hidden_layers", "vocab_size")  # fmt: skip
    torch.manual_seed(0)
    config = LlamaConfig(**{name: phi[name] for name in names}, attention_bias=True, mlp_bias=True)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):
                parameter.normal_(0, 0.5)
    model.save_pretrained(output)
    loaded, info = _load(output)
    assert not info["missing_keys"]
    whole = _logits(loaded)
    with torch.no_grad():
        for name, parameter in loaded.named_parameters():
            if name.endswith(".bias"):
                parameter.zero_()
    return _apart(_logits(loaded), whole)


def embed(source: str, token: int) -> list[int]:
    """Return the shape of what a model makes of a token."""
    import torch

    return list(_load(source)[0](torch.tensor([[token]])).logits.shape)


def generate(source: str, output: str, place: str, first: int, last: int) -> dict[str, Any]:
    """Generate without an end, name the tokens in `place`, a JSON file, that came at two positions
    as ends, and generate again; return the ids of both times and the ends."""
    import shutil

    import torch

    shutil.copytree(source, output)
    for name in ("generation_config.json", "config.json"):
        path = Path(output) / name
        words = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({**words, "eos_token_id": None}), encoding="utf-8")

    def made() -> list[int]:
        prompt = torch.arange(300, 305)[None]
        model = _load(output)[0]
        ids = model.generate(prompt, max_new_tokens=12, do_sample=False, pad_token_id=0)
        return [int(token) for token in ids[0, prompt.shape[1] :]]

    free = made()
    ends = [free[last], free[first]]
    if place == "config.json":
        (Path(output) / "generation_config.json").unlink()
    words = json.loads((Path(output) / place).read_text(encoding="utf-8"))
    (Path(output) / place).write_text(json.dumps({**words, "eos_token_id": ends}), encoding="utf-8")
    return {"free": free, "ends": ends, "made": made()}


def templates(source: str) -> list[str]:
    from transformers import AutoTokenizer

    found = AutoTokenizer.from_pretrained(source).chat_template
    return sorted(found) if isinstance(found, dict) else ["default"]


def encode(source: str, texts: list[str]) -> list[list[str]]:
    """Return the tokens of texts, without those that are added around them."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    return [tokenizer.tokenize(text) for text in texts]


def derived(source: str, output: str, *, pattern: str = "{}", packed: list[str] | None = None,
            module: str = "", separate: bool = False) -> dict[str, list[str]]:  # fmt: skip
    """Save a folder's tensors by other names, one module's weight in parts that mean nothing, or
    the fused ones apart; return what `load` says of it."""
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(Path(source) / "model.safetensors")
    if packed is not None:
        weight = tensors.pop(f"{module}.weight")
        tensors |= {
            module + end: weight if end == ".weight" else torch.zeros(16, dtype=torch.uint8)
            for end in packed
        }
    if separate:
        for name in [name for name in tensors if "qkv_proj" in name or "gate_up_proj" in name]:
            old, parts = ("qkv", "qkv") if "qkv" in name else ("gate_up", ("gate", "up"))
            pieces = tensors.pop(name).chunk(len(parts))
            for part, piece in zip(parts, pieces, strict=True):
                tensors[name.replace(f"{old}_proj", f"{part}_proj")] = piece.clone()
    folder = Path(output)
    folder.mkdir(exist_ok=True)
    tensors = {pattern.format(name): tensor for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if not (folder / "config.json").exists():
        (folder / "config.json").write_bytes((Path(source) / "config.json").read_bytes())
    return load(output)


def fp8(source: str, output: str) -> bool:
    """Save a folder's matrices as FP8 in blocks of 128 by 128 with one scale each, and return
    whether Transformers loads them as the numbers that they stand for."""
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(Path(source) / "model.safetensors")
    meant = {}
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        rounded = tensors[name].to(torch.float8_e4m3fn)
        rows, columns = rounded.shape
        tensors[name] = rounded
        tensors[f"{name}_scale_inv"] = torch.full((rows // 128, columns // 128), 2.0)
        meant[name] = rounded.float() * 2
    folder = Path(output)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    state = _load(output)[0].state_dict()
    return all(torch.equal(state[name].float(), tensor) for name, tensor in meant.items())


def read_adapter(base: str, adapter: str) -> dict[str, list[str]]:
    """Return what PEFT misses of an adapter, which it leaves as a new one, and does not expect."""
    from peft import PeftModel

    model = PeftModel.from_pretrained(_load(base)[0], adapter)
    found = model.load_adapter(adapter, "default")
    trained = ("lora_", "modules_to_save")
    return {
        "missing": [key for key in found.missing_keys if any(part in key for part in trained)],
        "unexpected": list(found.unexpected_keys),
    }


def merged(base: str, output: str, config: dict[str, Any], kind: str) -> dict[str, Any]:
    """Train an adapter at random and let PEFT merge it; return how far its weights are from plain
    LoRA's, W + alpha / r B A, of the tensors that it saved, and what else it saved."""
    import peft
    import torch
    from safetensors.torch import load_file

    model = _load(base)[0]
    plain = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    adapted = peft.get_peft_model(model, getattr(peft, kind)(task_type="CAUSAL_LM", **config))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    adapted.save_pretrained(output)
    found = load_file(Path(output) / "adapter_model.safetensors")
    for name in [name for name in found if name.endswith(".lora_A.weight")]:
        a, b = found.pop(name), found.pop(name.replace("lora_A", "lora_B"))
        target = name.removeprefix("base_model.model.").replace(".lora_A", "")
        plain[target] += config["lora_alpha"] / config["r"] * (b @ a)
    again = peft.PeftModel.from_pretrained(_load(base)[0], output).merge_and_unload()
    state = again.state_dict()
    return {
        "apart": max(_apart(state[name], tensor) for name, tensor in plain.items()),
        "others": sorted(found),
    }


def merged_on_tied(base: str, module: str) -> dict[str, Any]:
    """Train a LoRA on one of two tied modules and merge it; return how far the logits after the
    merge are from those in training, and whether both modules have changed."""
    import torch
    from peft import LoraConfig, get_peft_model

    model = _load(base)[0]
    before = model.lm_head.weight.clone()
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=[module.split(".")[-1]])
    adapted = get_peft_model(model, config).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.05)
    training = _logits(adapted)
    after = adapted.merge_and_unload()
    weights = (after.lm_head.weight, after.model.embed_tokens.weight)
    return {
        "apart": _apart(_logits(after), training),
        "both": all(not torch.equal(weight, before) for weight in weights),
    }


ACTIONS: dict[str, Callable[..., Any]] = {
    action.__name__: action
    for action in (
        load, apart, value, tied, biased, embed, generate, templates, encode, derived,
        fp8, read_adapter, merged, merged_on_tied,
    )
}  # fmt: skip


def main() -> None:
    out = os.dup(1)
    os.dup2(2, 1)  # libraries print
    answers: dict[str, Any] = {}
    for name, (what, order) in json.load(sys.stdin).items():
        try:
            answers[name] = ACTIONS[what](**order)
        except Exception as error:
            answers[name] = {"error": f"{type(error).__name__}: {error}"}
    with os.fdopen(out, "w") as stream:
        json.dump(answers, stream)


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    main()
