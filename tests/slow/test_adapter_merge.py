"""Merged weights are PEFT's, bit for bit; fused ones make Transformers' own logits."""

from __future__ import annotations

import json
import os
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from phibuild.backends.pytorch.memory import build_memory, merge_memory
from phibuild.checkpoints.adapter import load_adapted
from phibuild.checkpoints.adapter_config import DEFAULT_RANK, READ, VARIANTS, WITHOUT_EFFECT
from phibuild.checkpoints.facts import Checkpoint, load_checkpoint
from phibuild.worker.architecture import Architecture, read_architecture
from phibuild.worker.safetensors import SafetensorsWriter, TensorInfo, read_checkpoint, read_header
from phibuild.worker.unfused import (
    DEFAULTS,
    Fusing,
    canonical_config,
    find_fusing,
    places,
    unfused_tensors,
)
from support import warm
from support.adapters import lora, make_adapter

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SUPPORT = ROOT / "tests" / "support"
FUSED = ["qkv_proj", "gate_up_proj"]
SEPARATE = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
BOTH = ["embed_tokens", "lm_head"]
# A window shorter than the tests' texts, and a switch to the long factors within their reach.
WINDOW = {"rope_scaling": None, "sliding_window": 24, "max_position_embeddings": 4096}
SWITCH = {"original_max_position_embeddings": 48, "max_position_embeddings": 1024}
BASES: dict[str, tuple[str, dict[str, Any]]] = {
    "phi3": ("phi3", {}),
    "phi3-fp16": ("phi3", {"dtype": "fp16"}),
    "phi3-4k": ("phi3", {**WINDOW, "dtype": "fp32"}),
    "phi3-long": ("phi3", {**SWITCH, "sliding_window": None}),
    "phi4mini": ("phi4mini", {}),
    "phi4mini-fp32": ("phi4mini", {"dtype": "fp32", "shards": 3}),
    "phi4": ("phi4", {"shards": 2}),
}
# Name of a base made of another: what of, and how.
MADE = {
    "phi4-llama": ("phi4", "llama"),
    "phi3-mistral": ("phi3-4k", "mistral"),
    "phi3-long-llama": ("phi3-long", "older"),
    "phi4mini-split": ("phi4mini", "split"),
}


@dataclass(frozen=True)
class Case:
    """An adapter: what it was trained on, LoraConfig's words, whether embedding and head are one
    tensor after the merge, the type that it is saved in, the base it is merged into here, and how
    it is saved."""

    trained: str
    config: dict[str, Any]
    tied: bool
    dtype: str = "fp32"
    merged: str | None = None
    save: dict[str, Any] | None = None
    named: bool = False


CASES = {
    "fused names": Case("phi3", {"target_modules": FUSED, "r": 8, "lora_alpha": 16}, False),
    "all-linear, rank-stabilized, fp16": Case(
        "phi3-fp16", {"target_modules": "all-linear", "r": 12, "lora_alpha": 7, "use_rslora": True},
        False,
    ),
    "bf16 adapter": Case(
        "phi4mini", {"target_modules": "all-linear", "r": 5, "lora_alpha": 16}, True, "bf16"
    ),
    "fp16 adapter, some layers": Case(
        "phi4mini", {"target_modules": ["qkv_proj", "o_proj"], "layers_to_transform": [1, 3]},
        True, "fp16",
    ),
    "patterns": Case(
        "phi4mini-fp32",
        {
            "target_modules": "all-linear", "r": 4, "lora_alpha": 8, "use_rslora": True,
            "rank_pattern": {"layers.1.self_attn.o_proj": 3, r"layers\.[02]\.mlp\..*": 6},
            "alpha_pattern": {"qkv_proj": 5, "^model.layers.1.mlp.down_proj": 11},
        },
        True,
    ),
    "whole norms, head, embedding": Case(
        "phi3", {"target_modules": FUSED, "modules_to_save": [*BOTH, "norm"]}, False
    ),
    "LoRA on embedding and head": Case("phi3", {"target_modules": [*FUSED, *BOTH]}, False),
    "trained biases, of which there are none": Case(
        "phi3", {"target_modules": FUSED, "bias": "all"}, False
    ),
    "the adapter's name in the tensors' names": Case(
        "phi3", {"target_modules": [*FUSED, "embed_tokens"]}, False, named=True
    ),
    "LoRA on embedding, bf16 adapter": Case(
        "phi3-fp16", {"target_modules": ["embed_tokens"], "r": 3}, False, "bf16"
    ),
    "tied, whole head": Case(
        "phi4mini", {"target_modules": FUSED, "modules_to_save": ["lm_head"]}, False
    ),
    "tied, whole embedding": Case(
        "phi4mini", {"target_modules": FUSED, "modules_to_save": ["embed_tokens"]}, False
    ),
    "tied, both, apart": Case(
        "phi4mini-fp32", {"target_modules": FUSED, "modules_to_save": BOTH}, False
    ),
    "tied, both, kept together": Case(
        "phi4mini",
        {"target_modules": FUSED, "modules_to_save": BOTH, "ensure_weight_tying": True},
        True,
    ),
    "tied, embedding saved along": Case(
        "phi4mini", {"target_modules": FUSED}, True, save={"save_embedding_layers": True}
    ),
    "llama": Case("phi4-llama", {"target_modules": SEPARATE, "r": 9}, False),
    "llama's adapter on Phi": Case(
        "phi4-llama", {"target_modules": ["q_proj", "v_proj", "up_proj"]}, False, "bf16", "phi4"
    ),
    "mistral": Case("phi3-mistral", {"target_modules": "all-linear", "use_rslora": True}, False),
    "fused adapter on separate tensors": Case(
        "phi4mini", {"target_modules": "all-linear", "modules_to_save": ["lm_head"]}, False,
        merged="phi4mini-split",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Made:
    """Folders of bases, of PEFT's merged models and of ours, and the facts of the latter."""

    bases: dict[str, Path]
    folder: Path
    adapted: dict[str, Checkpoint]

    def place(self, what: str, case: str) -> Path:
        return self.folder / what / case.replace(" ", "-").replace(",", "").replace("'", "")


def _base(folder: Path, like: Path) -> Checkpoint:
    """Return the facts of a folder whose tensors may be separate, with the tokenizer of `like`."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    arch = read_architecture(canonical_config(config))
    facts = load_checkpoint(like, folder.name, str(folder))
    tensors = read_checkpoint(folder)
    return replace(facts, folder=folder, architecture=arch, fusing=find_fusing(tensors, arch))


def _order(base: Checkpoint, facts: Checkpoint, output: Path) -> dict[str, Any]:
    """Return what canonical.py is to write, into a new folder."""
    output.mkdir(parents=True)
    return {
        "weights": str(base.folder),
        "arch": facts.architecture.to_json(),
        "fusing": facts.fusing.to_json() if facts.fusing else {},
        "adapter": facts.adapter.to_json() if facts.adapter else None,
        "output": str(output),
    }


def _run(python: Path, script: str, request: Any) -> str:
    done = warm.run(
        [python, "-P", SUPPORT / script],
        input=json.dumps(request),
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return done.stdout


@pytest.fixture(scope="module")
def made(
    checkpoint: Callable[..., Path],
    vendor_python: Callable[[str], Path],
    toolchain_python: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Made:
    folder = tmp_path_factory.mktemp("merged")
    bases = {
        name: checkpoint(shape, layers=4, **options) for name, (shape, options) in BASES.items()
    }
    like = dict(bases)
    orders: list[tuple[str, dict[str, Any]]] = [("facts", {"output": str(folder / "facts.json")})]
    for name, (source, kind) in MADE.items():
        bases[name], like[name] = folder / name, bases[source]
        orders.append(
            (
                "llama_fied",
                {"source": str(bases[source]), "output": str(folder / name), "kind": kind},
            )
        )
    result = Made(bases, folder, {})
    for seed, (name, case) in enumerate(CASES.items()):
        base, adapter = str(bases[case.trained]), str(result.place("adapter", name))
        orders.append(
            (
                "adapter",
                {
                    "base": base, "output": adapter, "config": case.config, "dtype": case.dtype,
                    "save": case.save or {}, "seed": seed, "named": case.named,
                },
            )
        )  # fmt: skip
        output = str(result.place("theirs", name))
        orders.append(("merge", {"base": base, "adapter": adapter, "output": output}))
    _run(vendor_python("peft"), "peft_vendor.py", orders)

    writes: list[dict[str, Any]] = []
    for name, case in CASES.items():
        base_name = case.merged or case.trained
        facts = _base(bases[base_name], like[base_name])
        adapted = load_adapted(facts, result.place("adapter", name), name, name, None)
        result.adapted[name] = adapted
        writes.append(_order(facts, adapted, result.place("ours", name)))
    for name, (source, _) in MADE.items():  # without an adapter
        facts = _base(bases[name], bases[source])
        writes.append(_order(facts, facts, result.place("canonical", name)))
        config = json.loads((bases[name] / "config.json").read_text(encoding="utf-8"))
        text = json.dumps(canonical_config(config))
        (result.place("canonical", name) / "config.json").write_text(text, encoding="utf-8")
    lengths = {"short": 40, "long": 90}
    folders = {name: (bases[name], result.place("canonical", name)) for name in MADE}
    folders.pop("phi4mini-split")  # Transformers reads no such checkpoint
    logits = [
        (
            str(path),
            [(7 * n + 3) % 1000 for n in range(length)],
            str(folder / f"{who}-{name}-{word}"),
        )
        for name, pair in folders.items()
        for who, path in zip(("theirs", "ours"), pair, strict=True)
        for word, length in lengths.items()
    ]
    _run(toolchain_python("pytorch"), "canonical.py", {"write": writes, "logits": logits})
    return result


def _contents(tensors: dict[str, TensorInfo]) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    found = {}
    for name, info in tensors.items():
        data = info.path.read_bytes()[info.offset : info.offset + info.nbytes]
        found[name] = (info.dtype, info.shape, data)
    return found


def _fused(tensors: dict[str, TensorInfo], arch: Architecture) -> dict[str, Any]:
    """Return a saved model's tensors, the separate ones put one below the other."""
    found = _contents(tensors)
    fusing = find_fusing(tensors, arch) or Fusing({})
    for name, parts in unfused_tensors(arch):
        if name in fusing.tensors:
            pieces = [found.pop(part) for part, _ in parts]
            rows = sum(shape[0] for _, shape, _ in pieces)
            data = b"".join(data for *_, data in pieces)
            found[name] = (pieces[0][0], (rows, arch.hidden_size), data)
    return found


@pytest.mark.parametrize("name", CASES)
@pytest.mark.case(
    "fine-tunes",
    "LoRA: {name}",
    "PEFT's merge_and_unload, saved in the base's dtype",
    "every tensor, bit for bit",
)
def test_merged_tensors_are_those_of_peft(made: Made, name: str) -> None:
    case, adapted = CASES[name], made.adapted[name]
    ours = _contents(read_checkpoint(made.place("ours", name)))
    theirs = _fused(read_checkpoint(made.place("theirs", name)), adapted.architecture)
    assert adapted.architecture.tied is case.tied
    assert set(ours) == set(theirs)
    for tensor, (dtype, shape, data) in theirs.items():
        assert ours[tensor][:2] == (dtype, shape), tensor
        assert ours[tensor][2] == data, tensor


@pytest.mark.parametrize("name", CASES)
def test_the_merge_changed_what_was_trained(made: Made, name: str) -> None:
    case, adapted = CASES[name], made.adapted[name]
    base = made.bases[case.merged or case.trained]
    before = _fused(read_checkpoint(base), adapted.architecture)
    after = _contents(read_checkpoint(made.place("ours", name)))
    assert adapted.adapter is not None
    trained = {*adapted.adapter.deltas, *adapted.adapter.replacements}
    changed = {tensor for tensor, found in after.items() if before.get(tensor) != found}
    if case.save:
        trained.remove("model.embed_tokens.weight")  # the base's, saved along
    if "lm_head.weight" in after and "lm_head.weight" not in before:
        trained.add("lm_head.weight")  # untied
    assert changed == trained


@pytest.mark.parametrize("name", [name for name, (_, kind) in MADE.items() if kind != "split"])
@pytest.mark.parametrize("length", ["short", "long"])
def test_fused_weights_make_the_logits_of_llama_and_mistral(
    made: Made, name: str, length: str
) -> None:
    theirs, ours = (
        np.load(made.folder / f"{who}-{name}-{length}.npy") for who in ("theirs", "ours")
    )
    assert np.abs(theirs - ours).max() <= 1e-5 * np.abs(theirs).max()


@pytest.mark.parametrize("name", MADE)
def test_fused_tensors_are_those_that_were_separated(made: Made, name: str) -> None:
    source, _ = MADE[name]
    ours = _contents(read_checkpoint(made.place("canonical", name)))
    assert ours == _contents(read_checkpoint(made.bases[source]))


def test_tables_are_those_of_the_vendors(made: Made) -> None:
    facts = json.loads((made.folder / "facts.json").read_text(encoding="utf-8"))
    assert {*facts["lora"]} == {*READ, *WITHOUT_EFFECT, *VARIANTS}
    assert facts["r"] == facts["lora_alpha"] == DEFAULT_RANK
    for kind, defaults in DEFAULTS.items():
        assert {key: facts[kind][key] for key in defaults} == {
            **defaults,
            "num_key_value_heads": defaults["num_key_value_heads"] or 32,
        }


def test_weights_beyond_the_type_of_the_base_fail_with_their_place(
    checkpoint: Callable[..., Path], toolchain_python: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = checkpoint("phi3", dtype="fp16")
    base = load_checkpoint(folder, "base", "base")
    name = "model.layers.2.self_attn.o_proj"
    adapter = make_adapter(tmp_path / "lora", lora(places(base.architecture), name))
    path = adapter / "adapter_model.safetensors"
    found = read_header(path)
    with path.open("r+b") as file:  # the product is 100,000 at [3, 5]
        for part, at, value in (("A", 5, 50_000.0), ("B", 3 * 8, 1.0)):
            file.seek(found[f"base_model.model.{name}.lora_{part}.weight"].offset + 4 * at)
            file.write(struct.pack("<f", value))
    adapted = load_adapted(base, adapter, "adapted", "adapted", None)
    orders = [_order(base, adapted, tmp_path / name) for name in ("allowed", "refused")]
    orders[0]["allow_nonfinite"] = True
    with pytest.raises(AssertionError) as caught:
        _run(toolchain_python("pytorch"), "canonical.py", {"write": orders, "logits": []})
    assert (
        f"tensor {name}.weight holds inf at [3, 5] once it is merged: the adapter, or the type "
        "float16, does not fit the base"
    ) in str(caught.value)
    assert len(read_checkpoint(tmp_path / "allowed")) == len(list(base.architecture.tensors()))


@pytest.mark.skipif(sys.platform != "linux", reason="anonymous memory is read from /proc")
def test_memory_is_that_of_a_build(
    checkpoint: Callable[..., Path], toolchain_python: Callable[[str], Path], tmp_path: Path
) -> None:
    """The widths of a model of 0.44 B; the number of layers makes no difference."""
    base = load_checkpoint(checkpoint("phi3"), "base", "base")
    wide = replace(
        base.architecture,
        hidden_size=1536, intermediate_size=4096, heads=16, kv_heads=16, vocab_size=32064, layers=1,
    )  # fmt: skip
    weights, adapter = tmp_path / "weights", tmp_path / "adapter"
    weights.mkdir()
    adapter.mkdir()
    entries = [(name, "BF16", shape) for name, shape in wide.tensors()]
    SafetensorsWriter(weights, entries, metadata={}).close()  # zeros
    rank, lora = 64, []
    for name, shape in wide.tensors():
        if len(shape) == 2:
            module, (rows, columns) = f"base_model.model.{name.removesuffix('.weight')}", shape
            parts = [(rank, columns), (rows, rank)]
            words = ["lora_A.weight", "lora_B.weight"]
            if "embed" in name:
                parts, words = (
                    [(rank, rows), (columns, rank)],
                    ["lora_embedding_A", "lora_embedding_B"],
                )
            lora += [
                (f"{module}.{word}", "BF16", part) for word, part in zip(words, parts, strict=True)
            ]
    SafetensorsWriter(adapter, lora, metadata={}).close()
    (adapter / "model.safetensors").rename(adapter / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 8}
    (adapter / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    facts = replace(base, folder=weights, architecture=wide, links={}, config={})
    adapted = load_adapted(facts, adapter, "adapted", "adapted", None)
    assert adapted.adapter is not None
    order = _order(facts, adapted, tmp_path / "output")
    said = _run(toolchain_python("pytorch"), "canonical.py", {"write": [order], "logits": []})
    bound = merge_memory(wide, adapted.adapter.rank)
    assert 0 < int(said) <= bound
    assert bound <= build_memory(wide) + 4 * (wide.parameters - 2 * wide.vocab_size * 1536)
