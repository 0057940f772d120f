"""What Transformers and PEFT make of sources that phibuild mends or refuses: the third column of
docs/correctness.md, from their own programs. What phibuild does is in the tests of each part."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import ROOT
from phibuild.checkpoints.facts import load_checkpoint
from phibuild.worker.safetensors import read_header
from phibuild.worker.unfused import places
from support.adapters import lora, make_adapter
from support.misfits import TENSORS
from support.originals import edit_config, with_tensor
from support.refused import METHODS, MODULE, PLAIN, WRAPPED
from support.tokenizer_cases import make_case, named_templates, prefix

# They change with the locked versions of those programs alone.
pytestmark = [pytest.mark.slow, pytest.mark.every]

NORM, DOWN = "model.norm.weight", "model.layers.0.mlp.down_proj.weight"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
# Key of config.json and a value that phibuild refuses; whether the model becomes another one.
CONFIG: dict[str, tuple[dict[str, Any], bool | str]] = {
    "hidden_act": ({"hidden_act": "gelu"}, True),
    "is_causal": ({"is_causal": False}, True),
    "attention_bias": ({"attention_bias": True}, False),
    "mlp_bias": ({"mlp_bias": True}, False),
    "layer_types": ({"layer_types": ["sliding_attention"] * 2}, False),
    "attention_chunk_size": ({"attention_chunk_size": 64}, False),
    "head_dim": ({"head_dim": 48}, "broadcast"),
}
# Keys of rope_scaling.
ROPE: dict[str, dict[str, Any]] = {
    "mscale": {"long_mscale": 1.2, "short_mscale": 1.1},
    "attention_factor": {"attention_factor": 1.5},
    "factor": {"factor": 9.0},
    "su": {"type": "su"},
}
# What Transformers says of a quantized checkpoint where the method's own package is not installed.
QUANTIZED = {
    "gptq": "optimum", "awq": "gptqmodel", "bitsandbytes-4bit": "bitsandbytes",
    "bitsandbytes-8bit": "bitsandbytes", "torchao": "torchao", "hqq": "HQQ", "aqlm": "aqlm",
    "eetq": "kernels", "quanto": "optimum-quanto", "compressed-tensors": "compressed",
    "mlx": "no `quant_method`",
}  # fmt: skip
TARGETS = {"target_modules": ["qkv_proj", "down_proj"]}
LORA = {**TARGETS, "r": 8, "lora_alpha": 16}
# Class of PEFT's configuration, its words, whether its merge is plain LoRA's; or its error.
ADAPTERS: dict[str, tuple[str, dict[str, Any], bool | str]] = {
    "plain": ("LoraConfig", LORA, True),
    "trained biases": ("LoraConfig", {**LORA, "bias": "all"}, True),
    "QA-LoRA": ("LoraConfig", {**LORA, "use_qalora": True, "qalora_group_size": 16}, True),
    "DoRA": ("LoraConfig", {**LORA, "use_dora": True}, False),
    "PiSSA": ("LoraConfig", {**LORA, "init_lora_weights": "pissa"}, False),
    "OLoRA": ("LoraConfig", {**LORA, "init_lora_weights": "olora"}, False),
    "tokens": ("LoraConfig", {**LORA, "trainable_token_indices": [1, 2]}, False),
    "LoHa": ("LoHaConfig", {**TARGETS, "r": 8, "alpha": 16}, False),
    "biases of its own": ("LoraConfig", {**LORA, "lora_bias": True}, "Impossible to merge"),
}
# Adapters that do not fit, at which PEFT fails; of all others it leaves something out.
FAILING = {"empty", "other-width", "rank", "resized"}
TEXT, SPACED = "a b", "<|end|>a b"


@dataclass
class Questions:
    """Folders below `folder`, and what is asked of them, by name."""

    base: Path
    folder: Path
    asked: dict[str, tuple[str, dict[str, Any]]] = field(default_factory=dict)

    def copy(self, name: str, source: Path | None = None, **config: Any) -> Path:
        target = self.folder / name
        shutil.copytree(source or self.base, target)
        edit_config(target, **config)
        return target

    def ask(self, name: str, what: str, **order: Any) -> None:
        words = {key: str(one) if isinstance(one, Path) else one for key, one in order.items()}
        self.asked[name] = (what, words)

    def output(self, name: str) -> Path:
        return self.folder / f"made-{name}".replace(" ", "-")


def _values(path: Path, tensor: str, *values: int) -> None:
    """Write the first values of a bfloat16 tensor, by their bits."""
    with path.open("r+b") as file:
        file.seek(read_header(path)[tensor].offset)
        file.write(np.array(values, "<u2").tobytes())


def _configs(asked: Questions) -> None:
    for name, (keys, _) in CONFIG.items():
        asked.ask(name, "apart", source=asked.copy(f"config-{name}", **keys), base=asked.base)
    scaling = json.loads((asked.base / "config.json").read_text(encoding="utf-8"))["rope_scaling"]
    for name, keys in ROPE.items():
        folder = asked.copy(f"rope-{name}", rope_scaling={**scaling, **keys})
        asked.ask(name, "apart", source=folder, base=asked.base)


def _names(asked: Questions) -> None:
    base = asked.base
    for case, (pattern, _, _) in WRAPPED.items():
        asked.ask(case, "derived", source=base, output=asked.output(case), pattern=pattern)
    for method, (config, parts, _, _) in METHODS.items():
        folder = asked.output(method)
        folder.mkdir()
        shutil.copyfile(base / "config.json", folder / "config.json")
        edit_config(folder, quantization_config=config)
        if method == "fp8":
            asked.ask(method, "fp8", source=base, output=folder)
            continue
        asked.ask(method, "derived", source=base, output=folder, packed=list(parts), module=MODULE)
    asked.ask("separate", "derived", source=base, output=asked.output("apart"), separate=True)
    llama: dict[str, Any] = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "rope_scaling": None,
    }
    asked.ask("fused llama", "load", source=asked.copy("llama", **llama))
    asked.ask("llama with biases", "biased", base=base, output=asked.output("biased"))


def _weights(asked: Questions, sharded: Path, tied: Path) -> None:
    twice = asked.copy("twice", sharded)
    norm = read_header(twice / SECOND)[NORM]
    with_tensor(twice, NORM, bytes(norm.nbytes), norm.shape, "BF16", FIRST)
    for file, bits in ((FIRST, 0x4040), (SECOND, 0x40A0)):  # 3 and 5
        _values(twice / file, NORM, bits)
    index = json.loads((twice / "model.safetensors.index.json").read_text(encoding="utf-8"))
    for file in (FIRST, SECOND):
        folder = asked.copy(f"twice-{file[:11]}", twice)
        index["weight_map"][NORM] = file
        (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
        asked.ask(f"twice in {file}", "value", source=folder, tensor=NORM, dtype="float32")
    large = asked.copy("large")
    _values(large / "model.safetensors", DOWN, 0x4800)  # 2^17
    asked.ask("large", "value", source=large, tensor=DOWN, dtype="float16")
    broken = asked.copy("broken")
    _values(broken / "model.safetensors", DOWN, 0x7FC0)
    asked.ask("nan", "value", source=broken, tensor=DOWN, dtype="bfloat16")
    copied = asked.copy("copied", tied)
    embedding = read_header(copied / "model.safetensors")["model.embed_tokens.weight"]
    data = embedding.path.read_bytes()[embedding.offset : embedding.offset + embedding.nbytes]
    with_tensor(copied, "lm_head.weight", data, embedding.shape, "BF16")
    asked.ask("copied", "tied", source=copied)


def _tokenizers(asked: Questions) -> None:
    tokens = json.loads((asked.base / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    asked.ask("last token", "embed", source=asked.base, token=tokens - 1)
    asked.ask("token beyond", "embed", source=asked.base, token=tokens)
    for place in ("generation_config.json", "config.json"):
        asked.ask(f"ends in {place}", "generate", source=asked.base,
                  output=asked.output(f"ends-{place}"), place=place, first=3, last=6)  # fmt: skip
    for scheme in ("always", "first", "never"):
        folder = make_case(asked.folder / f"prefix-{scheme}", "phi3", prefix(scheme))
        asked.ask(scheme, "encode", source=folder, texts=[TEXT, SPACED])
    named = make_case(asked.folder / "named", "phi4mini", named_templates)
    (named / "chat_template.jinja").unlink()  # it would be the only one
    asked.ask("named templates", "templates", source=named)
    more = make_case(asked.folder / "more", "phi4")
    (more / "additional_chat_templates").mkdir()
    for name in ("tool_use.jinja", "rag.jinja", "notes.txt"):
        (more / "additional_chat_templates" / name).write_text("{{ x }}", encoding="utf-8")
    asked.ask("more templates", "templates", source=more)
    clean, stray = (make_case(asked.folder / name, "phi4") for name in ("clean", "stray"))
    shutil.copyfile(asked.base / "tokenizer.model", stray / "tokenizer.model")
    for folder in (clean, stray):
        asked.ask(folder.name, "encode", source=folder, texts=["two words", "  é 你好\n"])


def _adapters(asked: Questions, base: Path, tied: Path) -> None:
    loaded = load_checkpoint(base, "base", "base")
    for case, (change, _, _) in TENSORS.items():
        tensors = change(loaded, lora(places(loaded.architecture), "qkv_proj"))
        folder = make_adapter(asked.folder / f"adapter-{case}", tensors)
        asked.ask(f"adapter {case}", "read_adapter", base=base, adapter=folder)
    for case, (kind, config, _) in ADAPTERS.items():
        asked.ask(case, "merged", base=base, output=asked.output(case), config=config, kind=kind)
    for module in ("model.embed_tokens", "lm_head"):
        asked.ask(module, "merged_on_tied", base=tied, module=module)


@pytest.fixture(scope="module")
def answers(
    checkpoint: Callable[..., Path],
    vendor_python: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    base, tied = checkpoint("phi3", layers=2), checkpoint("phi4mini")
    asked = Questions(base, tmp_path_factory.mktemp("outsiders"))
    _configs(asked)
    _names(asked)
    _weights(asked, checkpoint("phi3", layers=2, shards=2), tied)
    _tokenizers(asked)
    _adapters(asked, checkpoint("phi3"), tied)
    done = subprocess.run(
        [vendor_python("peft"), "-P", ROOT / "tests" / "support" / "outsiders.py"],
        input=json.dumps(asked.asked), env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-6000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _is(answer: Any, expected: bool | str) -> bool:
    """Say whether a distance is one (True), is none (False), or an error has a text."""
    if isinstance(expected, str):
        return expected in answer["error"]
    return bool(answer > 1e-3) if expected else bool(answer == 0)


@pytest.mark.parametrize("key", CONFIG)
@pytest.mark.outside("config.json", "hidden_act, is_causal of other values", "another model")
@pytest.mark.outside(
    "config.json",
    "attention_bias, mlp_bias, layer_types, attention_chunk_size of other values",
    "no effect",
)
@pytest.mark.outside("config.json", "head_dim that hidden_size does not give", "cannot be run")
def test_keys_of_config_json(key: str, answers: dict[str, Any]) -> None:
    assert _is(answers[key], CONFIG[key][1]), answers[key]


@pytest.mark.outside("config.json", "a key of rope_scaling that Phi3Config has not", "no effect")
@pytest.mark.outside("config.json", "rope_scaling.type: su", "cannot be loaded")
def test_keys_of_rope_scaling(answers: dict[str, Any]) -> None:
    assert _is(answers["mscale"], False)
    assert _is(answers["attention_factor"], True)
    assert _is(answers["factor"], True)
    assert _is(answers["su"], "Missing required keys"), answers["su"]


@pytest.mark.parametrize("case", WRAPPED)
@pytest.mark.outside("fine-tunes", "saved from inside a wrapper: {case}", "random weights")
def test_wrapped_checkpoints_are_random(case: str, answers: dict[str, Any]) -> None:
    found = answers[case]
    inside = [name for name in PLAIN if ".layers." in name]
    assert {*inside} <= {*found["missing_keys"]}
    assert len(found["unexpected_keys"]) >= len(inside)


@pytest.mark.parametrize("method", QUANTIZED)
@pytest.mark.outside(
    "fine-tunes",
    "a checkpoint quantized already: {method}",
    "not loaded without the method's own package",
)
def test_quantized_checkpoints_are_not_loaded(method: str, answers: dict[str, Any]) -> None:
    assert _is(answers[method], QUANTIZED[method]), answers[method]


@pytest.mark.outside("fine-tunes", "a checkpoint quantized already: fp8", "dequantized")
def test_fp8_is_dequantized(answers: dict[str, Any]) -> None:
    assert QUANTIZED.keys() | {"fp8"} == METHODS.keys()
    assert answers["fp8"] is True


@pytest.mark.outside(
    "fine-tunes", "q, k, v, gate and up apart under a Phi-3 config.json", "random fused weights"
)
def test_separate_tensors_are_not_fused(answers: dict[str, Any]) -> None:
    fused = [name for name in PLAIN if "qkv_proj" in name or "gate_up_proj" in name]
    assert answers["separate"]["missing_keys"] == sorted(fused)


@pytest.mark.outside("fine-tunes", "LlamaForCausalLM with fused tensors", "random weights")
@pytest.mark.outside("fine-tunes", "LlamaForCausalLM with biases", "they change the logits")
def test_llamas_that_are_no_phi(answers: dict[str, Any]) -> None:
    missing = answers["fused llama"]["missing_keys"]
    assert {name.split(".")[-2] for name in missing} == {
        "q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"
    }  # fmt: skip
    assert _is(answers["llama with biases"], True)


@pytest.mark.outside(
    "weights",
    "one tensor in two files of those that are loaded",
    "the last file's, whatever the index says",
)
def test_one_tensor_in_two_files(answers: dict[str, Any]) -> None:
    assert [answers[f"twice in {file}"] for file in (FIRST, SECOND)] == ["tensor(5.)"] * 2


@pytest.mark.outside("weights", "a finite weight beyond fp16", "infinity")
@pytest.mark.outside("weights", "NaN or infinity", "loaded")
@pytest.mark.outside("weights", "tied flag, an equal copy as lm_head.weight", "tied")
def test_weights_that_are_loaded(answers: dict[str, Any]) -> None:
    assert answers["large"] == "tensor(inf, dtype=torch.float16)"
    assert answers["nan"] == "tensor(nan, dtype=torch.bfloat16)"
    assert answers["copied"] is True


@pytest.mark.outside("tokenizer", "more token ids than embeddings", "fails at such a token")
def test_a_token_beyond_the_embeddings(answers: dict[str, Any]) -> None:
    assert answers["last token"][0] == 1
    assert _is(answers["token beyond"], "IndexError")


@pytest.mark.parametrize("place", ["generation_config.json", "config.json"])
@pytest.mark.outside(
    "tokenizer",
    "GGUF: a list of stops, a tokenizer without an end, or another one",
    "the list ends generation",
)
def test_every_id_of_the_list_ends_generation(place: str, answers: dict[str, Any]) -> None:
    found = answers[f"ends in {place}"]
    due = next(n for n, token in enumerate(found["free"]) if token in found["ends"])
    assert found["made"] == found["free"][: due + 1]
    assert len(found["made"]) < len(found["free"]) == 12


@pytest.mark.outside(
    "tokenizer",
    "GGUF: prepend_scheme first, never, always",
    "a space at the first, at no, at each piece of text",
)
def test_where_a_space_is_put(answers: dict[str, Any]) -> None:
    starts = {
        scheme: [texts[0][0][0] == "▁", texts[1][1][0] == "▁"]
        for scheme in ("always", "first", "never")
        for texts in [answers[scheme]]
    }
    assert starts == {"always": [True, True], "first": [True, False], "never": [False, False]}


@pytest.mark.outside("tokenizer", "named chat templates", "kept")
@pytest.mark.outside("tokenizer", "additional_chat_templates/", "part of the tokenizer")
@pytest.mark.outside("tokenizer", "a stray tokenizer.model beside a byte-level BPE", "not read")
def test_files_of_a_tokenizer(answers: dict[str, Any]) -> None:
    assert answers["named templates"] == ["default", "tool use"]
    assert answers["more templates"] == ["default", "rag", "tool_use"]
    assert answers["stray"] == answers["clean"]


@pytest.mark.parametrize("case", ADAPTERS)
@pytest.mark.outside(
    "fine-tunes", "DoRA, LoHa, PiSSA, OLoRA, single trained tokens", "merged to other weights"
)
@pytest.mark.outside("fine-tunes", "LoRA with biases of its own", "cannot be merged")
@pytest.mark.outside("fine-tunes", "QA-LoRA", "plain LoRA, if the base is not quantized")
def test_what_other_adapters_are_merged_to(case: str, answers: dict[str, Any]) -> None:
    expected, found = ADAPTERS[case][2], answers[case]
    if isinstance(expected, str):
        assert _is(found, expected), found
    else:
        assert (found["apart"] < 1e-6) is expected, found
        assert not (expected and found["others"])


@pytest.mark.parametrize("case", TENSORS)
@pytest.mark.outside(
    "fine-tunes",
    "an adapter whose tensors do not fit its base",
    "PEFT fails, or leaves some out",
)
def test_adapters_that_do_not_fit(case: str, answers: dict[str, Any]) -> None:
    found = answers[f"adapter {case}"]
    if case in FAILING:
        assert _is(found, "size mismatch"), found
    else:
        assert found["missing"] or found["unexpected"], found


@pytest.mark.parametrize("module", ["model.embed_tokens", "lm_head"])
@pytest.mark.outside(
    "fine-tunes",
    "LoRA on a tied embedding or head",
    "PEFT's merge changes both, its training one",
)
def test_lora_on_one_of_two_that_are_tied(module: str, answers: dict[str, Any]) -> None:
    found = answers[module]
    assert found["both"] is True
    assert _is(found["apart"], True)
