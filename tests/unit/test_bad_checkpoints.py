"""Bad checkpoints: refused by `plan` and `build` with what is wrong where, nothing written."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.refusals import Refuse, refuse

__all__ = ["refuse"]

SUPPORTED = "supported: Phi-3, Phi-3.5, Phi-4-mini, Phi-4 (text, Phi3ForCausalLM)"
TOKENIZER = "copy the tokenizer files of the original checkpoint into the folder"
TOGETHER = "config.json and the weights must belong together"
COMPARE = "compare it with the config.json of the original checkpoint"
AGAIN = "fetch this file again"
WEIGHTS = "model.safetensors"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
NORM = "model.layers.0.input_layernorm.weight"
Damage = Callable[[Path], object]


def remove(*names: str) -> Damage:
    def damage(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return damage


def write(name: str, text: str | bytes) -> Damage:
    data = text if isinstance(text, bytes) else text.encode()
    return lambda folder: (folder / name).write_bytes(data)


def config(**changes: Any) -> Damage:
    """Change keys of config.json; None as `...` removes one."""

    def damage(folder: Path) -> None:
        path = folder / "config.json"
        data = {**json.loads(path.read_text()), **changes}
        data = {key: value for key, value in data.items() if value is not ...}
        path.write_text(json.dumps(data, indent=2))

    return damage


def header(change: Callable[[dict[str, Any]], None], name: str = WEIGHTS) -> Damage:
    """Rewrite the header of a weight file; the data stays."""

    def damage(folder: Path) -> None:
        data = (folder / name).read_bytes()
        length = struct.unpack("<Q", data[:8])[0]
        entries = json.loads(data[8 : 8 + length])
        change(entries)
        text = json.dumps(entries).encode()
        (folder / name).write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])

    return damage


def rename(old: str, new: str) -> Damage:
    return header(lambda entries: entries.update({new: entries.pop(old)}))


def cut(name: str, keep: int) -> Damage:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:keep])


def append(name: str) -> Damage:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes() + b"\0")


def only_pickles(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(b"x")


def emptied(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


# damage; where below the folder ("" is the folder itself); what it begins with; remedy
CASES: dict[str, tuple[Damage, str, str, str]] = {
    "no-config": (remove("config.json"), "", "config.json is missing",
                  "is this a Hugging Face checkpoint folder?"),
    "config-not-json": (write("config.json", '{\n  "a": 1,\n  b\n}\n'), "/config.json:3",
                        "not valid JSON: Expecting property name enclosed in double quotes", AGAIN),
    "config-not-text": (write("config.json", b"\xff\xfe\x00"), "/config.json",
                        "not valid JSON: damaged, or not text", AGAIN),
    "config-deep": (write("config.json", "[" * 100_000), "/config.json",
                    "not valid JSON: damaged, or not text", AGAIN),
    "config-a-list": (write("config.json", "[]"), "/config.json:1", "must be a JSON object", AGAIN),
    "no-tokenizer": (remove("tokenizer.json"), "", "tokenizer.json is missing", TOKENIZER),
    "no-tokenizer-config": (remove("tokenizer_config.json"), "",
                            "tokenizer_config.json is missing", TOKENIZER),
    "tokenizer-damaged": (write("tokenizer.json", '{\n"model": {\n'), "/tokenizer.json:3",
                          "not valid JSON: Expecting property name enclosed in double quotes",
                          TOKENIZER),
    "tokenizer-a-list": (write("tokenizer.json", "[]"), "/tokenizer.json:1",
                         "must be a JSON object", TOKENIZER),
    "tokenizer-without-model": (write("tokenizer.json", "{}"), "/tokenizer.json",
                                "its vocabulary is damaged", TOKENIZER),
    "tokenizer-vocabulary": (write("tokenizer.json", '{"model": {"vocab": [1]}}'),
                             "/tokenizer.json", "its vocabulary is damaged", TOKENIZER),
    "tokenizer-config-empty": (write("tokenizer_config.json", b" "), "/tokenizer_config.json:1",
                               "not valid JSON: Expecting value", TOKENIZER),
    # weights
    "no-weights": (remove(WEIGHTS), "", "no weights (model*.safetensors)",
                   "fetch the checkpoint again"),
    "pickles": (only_pickles, "", "only pickled weights (pytorch_model.bin), which can run code "
                "when loaded", "convert them to safetensors first"),
    "empty-weights": (write(WEIGHTS, b"tiny"), f"/{WEIGHTS}",
                      "4 bytes are too few for a safetensors file", AGAIN),
    "truncated": (cut(WEIGHTS, 500_000), f"/{WEIGHTS}", "it has 500,000 bytes, its header "
                  "promises ", AGAIN),
    "truncated-header": (cut(WEIGHTS, 100), f"/{WEIGHTS}",
                         "its header is longer than the file; truncated, or not safetensors",
                         AGAIN),
    "too-long": (append(WEIGHTS), f"/{WEIGHTS}", "it has ", AGAIN),
    "garbage": (write(WEIGHTS, struct.pack("<Q", 8) + b"\x80\x02garbage"), f"/{WEIGHTS}",
                "its header is not JSON; damaged, or not safetensors", AGAIN),
    "header-a-list": (write(WEIGHTS, struct.pack("<Q", 2) + b"[]"), f"/{WEIGHTS}",
                      "its header is not a JSON object", AGAIN),
    "header-entry": (header(lambda entries: entries[NORM].pop("shape")), f"/{WEIGHTS}",
                     f"header entry of tensor '{NORM}' is malformed", AGAIN),
    "header-size": (header(lambda entries: entries[NORM].update(dtype="F32")), f"/{WEIGHTS}",
                    f"tensor '{NORM}': 512 bytes do not hold F32 [256]", AGAIN),
    "wrong-type": (header(lambda entries: entries[NORM].update(dtype="I16")), f"/{WEIGHTS}",
                   f"tensor {NORM} is I16", "start from the original weights (BF16, F16, F32)"),
    "wrong-type-int8": (header(lambda entries: entries[NORM].update(dtype="I8", shape=[512])),
                        f"/{WEIGHTS}", f"tensor {NORM} is I8",
                        "start from the original weights (BF16, F16, F32)"),
    "wrong-shape": (header(lambda entries: entries[NORM].update(shape=[2, 128])), f"/{WEIGHTS}",
                    f"tensor {NORM} has shape [2, 128], config.json says [256]", TOGETHER),
    "renamed": (rename(NORM, "model.layers.0.norm.weight"), "",
                f"1 tensor(s) missing: {NORM}", TOGETHER),
    "surplus": (header(lambda entries: entries.update({"value_head": entries.pop(NORM)})), "",
                "1 tensor(s) that config.json's model has not: value_head",
                "merge adapters and remove extra heads first"),
    "more-layers": (config(num_hidden_layers=3), "", "6 tensor(s) missing: "
                    "model.layers.2.input_layernorm.weight, model.layers.2.self_attn.qkv_proj."
                    "weight, model.layers.2.self_attn.o_proj.weight and 3 more", TOGETHER),
    "many-layers": (config(num_hidden_layers=9999), "",
                    "config.json says 9,999 layers, there are 15 tensors", TOGETHER),
    "a-billion-layers": (config(num_hidden_layers=10**9), "/config.json:",
                         "num_hidden_layers must be 10,000 at most", COMPARE),
    "fewer-layers": (config(num_hidden_layers=1), "", "6 tensor(s) that config.json's model "
                     "has not: ",
                     "merge adapters and remove extra heads first"),
    "other-width": (config(intermediate_size=1024), f"/{WEIGHTS}",
                    "tensor model.layers.0.mlp.gate_up_proj.weight has shape [1024, 256], "
                    "config.json says [2048, 256]", TOGETHER),
    # config.json
    "no-layers-key": (config(num_hidden_layers=...), "/config.json",
                      "key 'num_hidden_layers' is missing", COMPARE),
    "heads": (config(num_attention_heads=7), "/config.json:",
              "hidden_size 256 is not a multiple of num_attention_heads 7", COMPARE),
    "heads-zero": (config(num_attention_heads=0), "/config.json:",
                   "num_attention_heads must be a whole number greater than 0, not 0", COMPARE),
    "vocabulary-word": (config(vocab_size="big"), "/config.json:",
                        "vocab_size must be a whole number greater than 0, not 'big'", COMPARE),
    "factors": (config(rope_scaling={"type": "longrope", "short_factor": [1.0] * 15,
                                     "long_factor": [1.0] * 16}), "/config.json:",
                "rope_scaling short_factor has 15 entries, a rotary width of 32 needs 16", COMPARE),
    "no-factors": (config(rope_scaling={"type": "longrope", "short_factor": [1.0] * 16}),
                   "/config.json", "key 'long_factor' is missing", COMPARE),
    "rope-linear": (config(rope_scaling={"type": "linear", "factor": 4}), "/config.json:",
                  "rope_scaling type 'linear' is not one that Phi models use (longrope)", COMPARE),
    "rope-list": (config(rope_scaling=[1]), "/config.json:", "rope_scaling must be an object",
                  COMPARE),
    **{
        f"only-{key}": (config(**{key: value}), "/config.json:",
                        f"{key} {value!r} makes another model than phibuild builds (", COMPARE)
        for key, value in (
            ("hidden_act", "gelu"), ("attention_bias", True), ("mlp_bias", True),
            ("is_causal", False), ("layer_types", ["sliding_attention"] * 2),
            ("attention_chunk_size", 64),
        )
    },
    "head-dim": (config(head_dim=48), "/config.json:", "head_dim 48 is not hidden_size / "
                 "num_attention_heads (", COMPARE),
    "rope-mscale": (config(rope_scaling={"type": "longrope", "short_factor": [1.0] * 16,
                                         "long_factor": [1.0] * 16, "long_mscale": 1.2}),
                    "/config.json:", "rope_scaling has 'long_mscale', which Transformers' Phi-3 "
                    "does not read", COMPARE),
    "llama-bias": (config(model_type="llama", architectures=["LlamaForCausalLM"], mlp_bias=True),
                   "/config.json:", "mlp_bias True of this llama is not the arithmetic of Phi-3",
                   ""),
    "llama-fused": (config(model_type="llama", architectures=["LlamaForCausalLM"]), "",
                    "4 tensor(s) that config.json's model has not: model.layers.0.self_attn."
                    "qkv_proj.weight, ", "merge adapters and remove extra heads first"),
    "gemma": (config(model_type="gemma", architectures=["GemmaForCausalLM"]), "/config.json:3",
              "not a Phi-3-architecture model (GemmaForCausalLM)", SUPPORTED),
    "no-model-type": (config(model_type=..., architectures=...), "/config.json",
                      "not a Phi-3-architecture model (no model_type)", SUPPORTED),
    "classifier": (config(architectures=["Phi3ForSequenceClassification"]), "/config.json:3",
                   "not a Phi-3-architecture model (Phi3ForSequenceClassification)", SUPPORTED),
    "architectures-word": (config(architectures="LlamaForCausalLM"), "/config.json:3",
                           "not a Phi-3-architecture model (LlamaForCausalLM)", SUPPORTED),
    **{
        kind: (config(model_type=kind, architectures=[name]), "/config.json:",
               f"{title} is not supported yet (model_type '{kind}')", SUPPORTED)
        for kind, name, title in (
            ("phi4flash", "Phi4FlashForCausalLM", "Phi-4-mini-flash (SambaY, hybrid state-space)"),
            ("phi4mm", "Phi4MMForCausalLM", "Phi-4-multimodal"),
            ("phi4_multimodal", "Phi4MultimodalForCausalLM", "Phi-4-multimodal"),
            ("phimoe", "PhiMoEForCausalLM", "Phi-3.5-MoE"),
            ("phi3_v", "Phi3VForCausalLM", "Phi-3-vision"),
            ("phi", "PhiForCausalLM", "Phi-1 / Phi-2"),
        )
    },
    "quantized": (config(quantization_config={"bits": 4}), "/config.json:",
                  "the checkpoint is quantized already",
                  "start from the original weights, or dequantize it with the tool that made it; "
                  "if the weights are plain (merged after training), remove quantization_config"),
}  # fmt: skip
SHARD_CASES: dict[str, tuple[Damage, str, str, str]] = {
    "missing-shard": (remove(SECOND), f"/{SECOND}", "missing shard that the index names",
                      "fetch the checkpoint again"),
    "truncated-shard": (cut(SECOND, 300_000), f"/{SECOND}", "it has 300,000 bytes, its header "
                        "promises ", AGAIN),
    "too-long-shard": (append(FIRST), f"/{FIRST}", "it has ", AGAIN),
    "index-not-json": (write(INDEX, "{"), f"/{INDEX}", "the index is damaged", AGAIN),
    "index-a-list": (write(INDEX, "[]"), f"/{INDEX}", "the index is damaged", AGAIN),
    "index-no-map": (write(INDEX, '{"metadata": {}}'), f"/{INDEX}", "the index is damaged", AGAIN),
    "index-numbers": (write(INDEX, '{"weight_map": {"a": 1}}'), f"/{INDEX}",
                      "the index is damaged", AGAIN),
    "mismatched-shards": (lambda folder: shutil.copyfile(folder / FIRST, folder / SECOND),
                          f"/{SECOND}", f"tensor model.embed_tokens.weight lies in {FIRST} too",
                          "one of the files is of another save: remove it, or fetch the "
                          "checkpoint again"),
}  # fmt: skip


@pytest.mark.parametrize("case", [*CASES, *SHARD_CASES])
@pytest.mark.case(
    "weights",
    "one tensor in two files of those that are loaded",
    None,
    "refused, naming both files",
)
@pytest.mark.case(
    "config.json",
    "hidden_act, is_causal of other values",
    None,
    "refused, with file and line",
)
@pytest.mark.case(
    "config.json",
    "attention_bias, mlp_bias, layer_types, attention_chunk_size of other values",
    None,
    "refused, with file and line",
)
@pytest.mark.case(
    "config.json",
    "head_dim that hidden_size does not give",
    None,
    "refused, with file and line",
)
@pytest.mark.case(
    "config.json",
    "a key of rope_scaling that Phi3Config has not",
    None,
    "refused, with file and line",
)
@pytest.mark.case(
    "fine-tunes",
    "LlamaForCausalLM with biases",
    None,
    "refused, naming the key",
)
@pytest.mark.case(
    "fine-tunes",
    "LlamaForCausalLM with fused tensors",
    None,
    "refused, naming the tensors",
)
def test_a_bad_checkpoint_is_refused(
    case: str, checkpoint: Callable[..., Path], refuse: Refuse
) -> None:
    damage, where, what, remedy = {**CASES, **SHARD_CASES}[case]
    source = checkpoint("phi3", layers=2, shards=2 if case in SHARD_CASES else 1)
    folder = refuse.folder / "my-phi"
    shutil.copytree(source, folder)
    damage(folder)
    errors = refuse(refuse.verbs[-1], "model=./my-phi")
    assert all(refuse(verb, "model=./my-phi") == errors for verb in refuse.verbs[:-1])
    (error,) = [error for error in errors if what in error]
    assert len(errors) <= 3
    first, _, second = error.partition("\n    ")
    place, _, rest = first.removeprefix(f"{folder}{where}").partition(": ")
    assert first.startswith(f"{folder}{where}")
    assert rest.startswith(what)
    if where.endswith(":"):
        key = {"heads": "hidden_size", "quantized": "quantization_config"}.get(case)
        key = key or ("model_type" if "not supported yet" in what else what.split()[0])
        assert f'"{key}"' in (folder / "config.json").read_text().splitlines()[int(place) - 1]
    else:
        assert place == ""
    if remedy:
        assert second == remedy


def test_all_that_is_wrong_with_a_checkpoint_is_shown_at_once(
    checkpoint: Callable[..., Path], refuse: Refuse
) -> None:
    folder = refuse.folder / "my-phi"
    shutil.copytree(checkpoint("phi3", layers=2), folder)
    rename(NORM, "surplus.weight")(folder)
    remove("tokenizer_config.json")(folder)
    errors = [error.splitlines()[0] for error in refuse("plan", "model=./my-phi")]
    assert errors == [
        f"{folder}: 1 tensor(s) missing: {NORM}",
        f"{folder}: 1 tensor(s) that config.json's model has not: surplus.weight",
        f"{folder}: tokenizer_config.json is missing",
    ]


def test_an_empty_folder_is_refused(refuse: Refuse) -> None:
    (refuse.folder / "my-phi").mkdir()
    for verb in ("plan", "build"):
        assert refuse(verb, "model=./my-phi") == [
            f"command line: model=./my-phi: the folder is empty: {refuse.folder}/my-phi\n"
            "    give a checkpoint folder, a model name or org/name"
        ]


def test_two_models_of_one_name_are_refused(
    checkpoint: Callable[..., Path], refuse: Refuse
) -> None:
    source = checkpoint("phi3", layers=2)
    for name in ("a", "b"):
        shutil.copytree(source, refuse.folder / name / "phi")
    assert refuse("plan", "-m", "model=./a/phi,./b/phi") == [
        "command line: model=./a/phi,./b/phi: models './a/phi' and './b/phi' would both be called "
        "'phi'\n    give one a name of its own: {name: NAME, path: ./b/phi}"
    ]
