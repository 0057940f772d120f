"""Adapters: what of them is merged where, and every kind that is refused, with the place."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from phibuild.checkpoints.adapter import base_reference, load_adapted
from phibuild.checkpoints.facts import Checkpoint, load_checkpoint
from phibuild.errors import SourceError
from phibuild.worker.adapter_merge import Changes
from phibuild.worker.unfused import (
    EMBEDDING,
    HEAD,
    find_fusing,
    places,
    source_tensors,
    unfused_tensors,
)
from support.adapters import Tensors, lora, make_adapter
from support.misfits import AGAIN, MERGE, PREFIX, TENSORS

QKV = "model.layers.0.self_attn.qkv_proj.weight"


@pytest.fixture
def untied(checkpoint: Callable[..., Path]) -> Checkpoint:
    return load_checkpoint(checkpoint("phi3"), "base", "base")


@pytest.fixture
def tied(checkpoint: Callable[..., Path]) -> Checkpoint:
    return load_checkpoint(checkpoint("phi4mini"), "base", "base")


def whole(base: Checkpoint, module: str, *, dtype: str = "BF16", part: str = "weight") -> Tensors:
    return {f"{PREFIX}{module}.{part}": (dtype, places(base.architecture)[module].shape)}


def adapted(base: Checkpoint, folder: Path) -> Checkpoint:
    return load_adapted(base, folder, "kiosk", "./lora", "recipes/a.yaml:3")


def refused(base: Checkpoint, folder: Path) -> list[str]:
    with pytest.raises(SourceError) as caught:
        adapted(base, folder)
    return [str(problem) for problem in caught.value.problems]


def line(folder: Path, key: str) -> str:
    path = folder / "adapter_config.json"
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if f'"{key}"' in text:
            return f"{path}:{number}"
    return str(path)


def test_facts_are_those_of_the_base_with_what_is_to_be_merged(
    untied: Checkpoint, tmp_path: Path
) -> None:
    tensors = lora(places(untied.architecture), "qkv_proj", "down_proj")
    folder = make_adapter(tmp_path / "lora", tensors)
    found = adapted(untied, folder)
    assert (found.name, found.reference, found.folder) == ("kiosk", "./lora", untied.folder)
    assert found.architecture == untied.architecture
    assert (found.weight_bytes, found.files) == (untied.weight_bytes, untied.files)
    assert found.fusing is None
    assert found.adapter is not None
    assert len(found.adapter.deltas) == 2 * untied.architecture.layers
    (delta,) = found.adapter.deltas[QKV]
    assert (delta.scale, delta.first, delta.rows, delta.rank) == (2.0, 0, 768, 8)
    told = json.loads(json.dumps(found.adapter.to_json()))
    assert found.adapter.to_json() == told
    changes = Changes.from_json(told)
    assert changes.deltas == {name: [*some] for name, some in found.adapter.deltas.items()}
    assert base_reference(folder, None) == "org/base"


def test_separate_names_are_rows_of_the_fused_tensor(tied: Checkpoint, tmp_path: Path) -> None:
    tensors = lora(places(tied.architecture), "q_proj", "k_proj", "v_proj", "up_proj")
    found = adapted(tied, make_adapter(tmp_path / "lora", tensors, target_modules=["q_proj"]))
    assert found.adapter is not None
    rows = [(delta.first, delta.rows) for delta in found.adapter.deltas[QKV]]
    assert sorted(rows) == [(0, 384), (384, 128), (512, 128)]
    gate_up = found.adapter.deltas["model.layers.3.mlp.gate_up_proj.weight"]
    assert [(delta.first, delta.rows) for delta in gate_up] == [(768, 768)]


def test_scale_follows_patterns_and_rank_stabilization(untied: Checkpoint, tmp_path: Path) -> None:
    known = places(untied.architecture)
    tensors = lora(known, "qkv_proj") | lora(known, "layers.2.self_attn.o_proj", rank=3)
    folder = make_adapter(
        tmp_path / "lora", tensors, use_rslora=True, target_modules=r".*(qkv|o)_proj",
        rank_pattern={"layers.2.self_attn.o_proj": 3}, alpha_pattern={r"\w+\.o_proj": 5},
    )  # fmt: skip
    found = adapted(untied, folder).adapter
    assert found is not None
    scales = {name: parts[0].scale for name, parts in found.deltas.items()}
    assert scales[QKV] == 16 / math.sqrt(8)
    assert scales["model.layers.2.self_attn.o_proj.weight"] == 5 / math.sqrt(3)


@pytest.mark.parametrize(
    ("whole_modules", "saved", "same", "stays"),
    [
        (["lm_head"], ["lm_head"], False, False),
        (["model.embed_tokens"], ["embed_tokens"], False, False),
        (["model.embed_tokens"], None, False, True),
        (["model.embed_tokens", "lm_head"], None, True, True),
        (["model.embed_tokens", "lm_head"], ["embed_tokens", "lm_head"], True, True),
        (["model.embed_tokens", "lm_head"], ["embed_tokens", "lm_head"], False, False),
    ],
)
def test_a_trained_head_unties(
    tied: Checkpoint, tmp_path: Path, whole_modules: list[str], saved: Any, same: bool, stays: bool
) -> None:
    tensors = lora(places(tied.architecture), "qkv_proj")
    for module in whole_modules:
        tensors |= whole(tied, module)
    folder = make_adapter(tmp_path / "lora", tensors, modules_to_save=saved)
    if not same:  # the last tensor in the file
        path = folder / "adapter_model.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"\1")
    found = adapted(tied, folder)
    assert found.adapter is not None
    assert found.architecture.tied is stays
    arch = tied.architecture
    head = 0 if stays else 2 * arch.vocab_size * arch.hidden_size
    assert found.weight_bytes == tied.weight_bytes + head
    assert (found.fusing is None) is stays
    if not stays:
        assert found.fusing is not None
        assert found.fusing.tensors == {HEAD: (EMBEDDING,)}
    assert (HEAD in found.adapter.replacements) is (not stays and "lm_head" in whole_modules)


def test_a_complete_tokenizer_takes_the_place_of_the_base_s(
    untied: Checkpoint, tied: Checkpoint, tmp_path: Path
) -> None:
    tensors = lora(places(untied.architecture), "qkv_proj")
    folder = make_adapter(tmp_path / "lora", tensors)
    assert tied.folder is not None
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(tied.folder / name, folder / name)
    part = adapted(untied, folder)
    assert part.adapter is not None
    assert part.adapter.tokenizer == {}
    assert part.files == untied.files
    shutil.copyfile(tied.folder / "tokenizer.json", folder / "tokenizer.json")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool.jinja").write_text("{{ messages }}")
    found = adapted(untied, folder)
    assert found.adapter is not None
    names = ["additional_chat_templates/tool.jinja", "chat_template.jinja", "tokenizer.json",
             "tokenizer_config.json"]  # fmt: skip
    assert sorted(found.adapter.tokenizer) == names
    assert found.files.tokens == tied.files.tokens
    assert found.files.tokenizer == "bpe"
    assert found.files.files["tokenizer.json"] == tied.files.files["tokenizer.json"]
    assert "adapter_model.safetensors" not in found.files.files
    assert untied.folder is not None
    base = {name: untied.folder / name for name in ("config.json", "tokenizer.model", "LICENSE")}
    assert found.adapter.links(base) == {
        "LICENSE": untied.folder / "LICENSE",
        "adapter/adapter_config.json": folder / "adapter_config.json",
        "adapter/adapter_model.safetensors": folder / "adapter_model.safetensors",
        "config.json": untied.folder / "config.json",
        **{name: folder / name for name in names},
    }
    assert part.adapter.links(base)["tokenizer.model"] == untied.folder / "tokenizer.model"


@pytest.mark.case(
    "fine-tunes",
    "a LoRA adapter with a chat template of its own, but no tokenizer.json",
    "-",
    "the base's tokenizer and template, and a note that names the files",
)
def test_an_incomplete_tokenizer_is_not_used_and_its_files_are_named(
    untied: Checkpoint, tmp_path: Path
) -> None:
    assert untied.folder is not None
    folder = make_adapter(tmp_path / "lora", lora(places(untied.architecture), "qkv_proj"))
    names = ("tokenizer_config.json", "chat_template.jinja", "tokenizer.model")
    for name in names:
        shutil.copyfile(untied.folder / name, folder / name)
    merged = "the LoRA adapter in lora is merged into base"
    assert adapted(untied, folder).notes == (merged,)  # what is the base's is no news
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}", encoding="utf-8")
    (folder / "added_tokens.json").write_text("{}", encoding="utf-8")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool.jinja").touch()
    found = adapted(untied, folder)
    assert found.adapter is not None
    assert found.adapter.tokenizer == {}
    assert found.notes[1:] == (
        "the adapter's own added_tokens.json, chat_template.jinja, "
        "additional_chat_templates/tool.jinja not used, since it has no tokenizer.json: the "
        "tokenizer and its chat template are the base's",
    )
    (folder / "tokenizer_config.json").unlink()
    assert (
        "it has no tokenizer.json and no tokenizer_config.json:" in adapted(untied, folder).notes[1]
    )
    # Of a base that is not on this machine nobody knows what is the same.
    (note,) = adapted(replace(untied, folder=None), folder).notes[1:]
    assert note.startswith("the adapter's own tokenizer.model, added_tokens.json, chat_template.j")


def test_a_damaged_tokenizer_is_refused(untied: Checkpoint, tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "lora", lora(places(untied.architecture), "qkv_proj"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text("{}")
    assert "its vocabulary is damaged" in refused(untied, folder)[0]


def test_on_separate_tensors_the_base_s_fusing_stays(tied: Checkpoint, tmp_path: Path) -> None:
    names = {part for _, parts in unfused_tensors(tied.architecture) for part, _ in parts}
    fusing = find_fusing(dict.fromkeys(names), tied.architecture)
    assert fusing is not None
    tensors = lora(places(tied.architecture), "qkv_proj") | whole(tied, "lm_head")
    folder = make_adapter(tmp_path / "lora", tensors, modules_to_save=["lm_head"])
    found = adapted(replace(tied, fusing=fusing), folder)
    assert found.fusing is not None
    assert found.fusing.tensors == {**fusing.tensors, HEAD: (EMBEDDING,)}
    assert dict(source_tensors(tied.architecture, fusing)).keys() >= names


# keys of adapter_config.json; the key that is named; what it begins with; remedy
CONFIGS: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "loha": ({"peft_type": "LOHA"}, "peft_type", "LOHA adapters are not supported", MERGE),
    "prompt": ({"peft_type": "PROMPT_TUNING"}, "peft_type", "PROMPT_TUNING adapters are", MERGE),
    "no-type": ({"peft_type": ...}, "peft_type", "an adapter without peft_type is not", MERGE),
    "dora": ({"use_dora": True}, "use_dora", "DoRA is not supported (use_dora)", MERGE),
    "lora-bias": ({"lora_bias": True}, "lora_bias", "LoRA with biases of its own is not", MERGE),
    "alora": ({"alora_invocation_tokens": [5]}, "alora_invocation_tokens", "an activated LoRA",
              MERGE),
    "tokens": ({"trainable_token_indices": [1, 2]}, "trainable_token_indices",
               "LoRA with single trained tokens is not supported", MERGE),
    "parameters": ({"target_parameters": ["mlp.x"]}, "target_parameters",
                   "LoRA on parameters that are no modules is not supported", MERGE),
    "fan": ({"fan_in_fan_out": True}, "fan_in_fan_out", "LoRA on transposed weights", MERGE),
    "replication": ({"layer_replication": [[0, 2], [1, 4]]}, "layer_replication",
                    "LoRA on repeated layers is not supported", MERGE),
    "qalora": ({"use_qalora": True}, "use_qalora", "QA-LoRA is not supported", MERGE),
    "bdlora": ({"use_bdlora": {"nblocks": 2}}, "use_bdlora", "block-diagonal LoRA", MERGE),
    "arrow": ({"arrow_config": {"top_k": 3}}, "arrow_config", "Arrow routing is not", MERGE),
    "kasa": ({"kasa_config": {"beta": 1}}, "kasa_config", "KaSA is not supported", MERGE),
    "velora": ({"velora_config": {"scale": 1}}, "velora_config", "VeLoRA is not", MERGE),
    "monteclora": ({"monteclora_config": {"a": 1}}, "monteclora_config", "MonteCLoRA is", MERGE),
    **{
        str(init): ({"init_lora_weights": init}, "init_lora_weights",
                    f"an adapter that began with {init!r} is on a changed base",
                    "save it with path_initial_model_for_weight_conversion, which makes it a "
                    "plain LoRA")
        for init in ("pissa", "pissa_niter_16", "olora", "loftq", "corda", "lora_ga")
    },
    "mica": ({"init_lora_weights": "mica"}, "init_lora_weights", "init_lora_weights 'mica' is not "
             "known to be plain LoRA", MERGE),
    "unknown": ({"use_qdora": True}, "use_qdora", "key 'use_qdora' is not known", MERGE),
    "rank": ({"r": 0}, "r", "r must be a whole number greater than 0, not 0", AGAIN),
    "rank-text": ({"r": "8"}, "r", "r must be a whole number greater than 0, not '8'", AGAIN),
    "alpha": ({"lora_alpha": None}, "lora_alpha", "lora_alpha must be a number, not None", AGAIN),
    "rank-huge": ({"r": 10**400}, "r", "r must be a whole number greater than 0, not 1000", AGAIN),
    "alpha-huge": ({"lora_alpha": 10**400}, "lora_alpha", "lora_alpha must be a number", AGAIN),
    "alpha-nan": ({"lora_alpha": float("nan")}, "lora_alpha", "lora_alpha must be a nu", AGAIN),
    "ranks": ({"rank_pattern": {"o_proj": 0}}, "rank_pattern", "rank_pattern must give", AGAIN),
    "ranks-list": ({"rank_pattern": [1]}, "rank_pattern", "rank_pattern must give", AGAIN),
    "alphas": ({"alpha_pattern": {"o_proj": "x"}}, "alpha_pattern", "alpha_pattern must", AGAIN),
    "pattern": ({"alpha_pattern": {"o_(proj": 2}}, "alpha_pattern", "alpha_pattern: 'o_(proj' is "
                "no regular expression", AGAIN),
    "saved": ({"modules_to_save": "lm_head"}, "modules_to_save", "modules_to_save must be a list",
              AGAIN),
}  # fmt: skip


@pytest.mark.parametrize("case", CONFIGS)
@pytest.mark.case(
    "fine-tunes",
    "DoRA, LoHa, PiSSA, OLoRA, single trained tokens",
    None,
    "refused by name, with file and line",
)
@pytest.mark.case(
    "fine-tunes", "LoRA with biases of its own", None, "refused by name, with file and line"
)
@pytest.mark.case("fine-tunes", "QA-LoRA", None, "refused by name, with file and line")
def test_what_is_not_plain_lora_is_refused(untied: Checkpoint, tmp_path: Path, case: str) -> None:
    keys, key, what, remedy = CONFIGS[case]
    folder = make_adapter(tmp_path / "lora", lora(places(untied.architecture), "qkv_proj"), **keys)
    (found,) = refused(untied, folder)
    assert found.startswith(f"{line(folder, key)}: {what}"), found
    assert found.endswith(f"\n    {remedy}"), found
    with pytest.raises(SourceError):
        base_reference(folder, None)


@pytest.mark.parametrize("init", [True, False, "gaussian", "eva", "orthogonal", None])
def test_beginnings_that_leave_the_base_alone_are_plain(
    untied: Checkpoint, tmp_path: Path, init: Any
) -> None:
    folder = make_adapter(
        tmp_path / "lora", lora(places(untied.architecture), "qkv_proj"), init_lora_weights=init
    )
    assert adapted(untied, folder).adapter is not None


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases_that_a_phi_has_not_are_none(untied: Checkpoint, tmp_path: Path, bias: str) -> None:
    tensors = lora(places(untied.architecture), "qkv_proj")
    folder = make_adapter(tmp_path / "lora", tensors, bias=bias)
    assert adapted(untied, folder).adapter is not None


def test_an_adapters_own_name_may_be_in_its_tensors(untied: Checkpoint, tmp_path: Path) -> None:
    known = places(untied.architecture)
    tensors = lora(known, "qkv_proj", "embed_tokens")
    names = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B")
    own = {
        ".".join(f"{part}.default" if part in names else part for part in name.split(".")): entry
        for name, entry in tensors.items()
    }
    found = adapted(untied, make_adapter(tmp_path / "own", own)).adapter
    plain = adapted(untied, make_adapter(tmp_path / "plain", tensors)).adapter
    assert found is not None
    assert plain is not None
    assert list(found.deltas) == list(plain.deltas)
    assert found.deltas[QKV][0].a.endswith("qkv_proj.lora_A.default.weight")


def damaged(folder: Path, name: str, data: bytes) -> Path:
    (folder / name).write_bytes(data)
    return folder


def test_a_folder_that_is_no_adapter_is_refused(untied: Checkpoint, tmp_path: Path) -> None:
    assert refused(untied, tmp_path) == [
        f"recipes/a.yaml:3: not an adapter: adapter_config.json is missing in {tmp_path}\n"
        "    give the folder that PEFT's save_pretrained wrote"
    ]


def test_damaged_and_pickled_files_are_refused(untied: Checkpoint, tmp_path: Path) -> None:
    tensors = lora(places(untied.architecture), "qkv_proj")
    folder = make_adapter(tmp_path / "lora", tensors)
    weights = folder / "adapter_model.safetensors"
    kept = weights.read_bytes()
    assert refused(untied, damaged(folder, weights.name, kept[:-1]))[0].startswith(f"{weights}: it")
    weights.unlink()
    assert refused(untied, folder) == [
        f"{folder}: adapter_model.safetensors is missing\n    {AGAIN}"
    ]
    (folder / "adapter_model.bin").write_bytes(b"x")
    assert refused(untied, folder) == [
        f"{folder}: only pickled weights (adapter_model.bin), which can run code when loaded\n"
        f"    {AGAIN}, as safetensors"
    ]
    config = folder / "adapter_config.json"
    for data, what in ((b"{\n x", f"{config}:2: not valid JSON"), (b"[]", f"{config}:1: must be"),
                       (b"\xff\xfe", f"{config}: not valid JSON: damaged")):  # fmt: skip
        assert refused(untied, damaged(folder, config.name, data))[0].startswith(what)


def test_an_adapter_without_a_base_says_what_to_write(untied: Checkpoint, tmp_path: Path) -> None:
    tensors = lora(places(untied.architecture), "qkv_proj")
    for base in (None, "", ...):
        folder = make_adapter(tmp_path / "lora", tensors, base_model_name_or_path=base)
        with pytest.raises(SourceError) as caught:
            base_reference(folder, None)
        assert str(caught.value) == (
            f"{line(folder, 'base_model_name_or_path')}: the adapter does not name its base "
            "(base_model_name_or_path)\n"
            f"    name it in the recipe: model: {{base: ..., adapter: {folder}}}"
        )
        assert adapted(untied, folder).adapter is not None
        shutil.rmtree(folder)


@pytest.mark.parametrize("case", TENSORS)
@pytest.mark.case(
    "fine-tunes",
    "an adapter whose tensors do not fit its base",
    None,
    "refused, naming tensor and shapes",
)
def test_tensors_that_do_not_fit_are_refused(untied: Checkpoint, tmp_path: Path, case: str) -> None:
    change, what, remedy = TENSORS[case]
    tensors = change(untied, lora(places(untied.architecture), "qkv_proj"))
    folder = make_adapter(tmp_path / "lora", tensors)
    (found,) = refused(untied, folder)
    assert found.startswith(f"{folder / 'adapter_model.safetensors'}: {what}"), found
    assert found.endswith(f"\n    {remedy}"), found


@pytest.mark.parametrize(
    "keys",
    [
        {"layers_to_transform": 0},
        {"layers_to_transform": [0]},
        {"exclude_modules": r".*layers\.[123].*"},
        {"target_modules": r".*layers\.0\..*qkv_proj"},
        {"target_modules": ["q_proj", "qkv_proj"], "layers_to_transform": [0]},
    ],
)
def test_layers_may_be_left_out(untied: Checkpoint, tmp_path: Path, keys: dict[str, Any]) -> None:
    tensors = lora(places(untied.architecture), "layers.0.self_attn.qkv_proj")
    found = adapted(untied, make_adapter(tmp_path / "lora", tensors, **keys)).adapter
    assert found is not None
    assert list(found.deltas) == [QKV]


def test_names_of_target_modules_that_the_base_has_not_are_no_gap(
    untied: Checkpoint, tmp_path: Path
) -> None:
    """A list for Llama on a fused base: PEFT finds some of its names only."""
    tensors = lora(places(untied.architecture), "o_proj", "down_proj")
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    found = adapted(untied, make_adapter(tmp_path / "lora", tensors, target_modules=names)).adapter
    assert found is not None
    assert len(found.deltas) == 2 * untied.architecture.layers


def test_modules_to_save_without_tensors_are_refused(untied: Checkpoint, tmp_path: Path) -> None:
    tensors = lora(places(untied.architecture), "qkv_proj")
    saved = ["lm_head", "score"]  # a classifier's head is no module of this base: PEFT skips it
    folder = make_adapter(tmp_path / "lora", tensors, modules_to_save=saved)
    (found,) = refused(untied, folder)
    assert "no tensor of 'lm_head', which modules_to_save has" in found


@pytest.mark.parametrize("module", ["model.embed_tokens", "lm_head"])
@pytest.mark.case(
    "fine-tunes",
    "LoRA on a tied embedding or head",
    None,
    "refused, with the remedy",
)
def test_lora_on_tied_embeddings_is_refused(tied: Checkpoint, tmp_path: Path, module: str) -> None:
    folder = make_adapter(tmp_path / "lora", lora(places(tied.architecture), module))
    (found,) = refused(tied, folder)
    assert f"LoRA on {module} of a model with tied embeddings: PEFT's merge changes" in found
    assert found.endswith("train it with modules_to_save, or untie the base before training")


def test_a_head_that_nothing_names_is_refused_for_a_tied_base(
    tied: Checkpoint, tmp_path: Path
) -> None:
    folder = make_adapter(tmp_path / "lora", whole(tied, "lm_head"))
    (found,) = refused(tied, folder)
    assert found.startswith(f"{line(folder, 'modules_to_save')}: the adapter has an lm_head that")


def test_many_misfits_are_three_errors(untied: Checkpoint, tmp_path: Path) -> None:
    tensors = lora(places(untied.architecture), "o_proj", "down_proj", rank=4)
    found = refused(untied, make_adapter(tmp_path / "lora", tensors))
    assert any("more tensors)" in text for text in found)
    assert sum("is due" in text for text in found) == 3


def test_an_adapter_of_a_model_that_is_not_fetched(untied: Checkpoint, tmp_path: Path) -> None:
    """A plan without a network needs the base's shape alone."""
    folder = make_adapter(tmp_path / "lora", lora(places(untied.architecture), "qkv_proj"))
    assert adapted(replace(untied, folder=None), folder).is_estimate
