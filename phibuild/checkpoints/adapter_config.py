"""adapter_config.json of a LoRA adapter, as PEFT writes it: what is read, and what is refused.

Keys are those of PEFT 0.21's LoraConfig (peft/tuners/lora/config.py); a test compares the table
with it. A key that is in no row is of a newer or another PEFT: it is refused if it is set, since
nobody here knows what it does to the weights.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from phibuild.checkpoints.json_files import json_place, read_json_object
from phibuild.errors import Problem, SourceError
from phibuild.worker.adapter_merge import ADAPTER_CONFIG
from phibuild.worker.json_values import JsonObject, is_number, is_texts, is_whole_number

SAVE_AGAIN = "save the adapter again with PEFT's save_pretrained"
MERGE = "merge it with the tool that trained it and give the merged checkpoint"
READ = (
    "base_model_name_or_path", "peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern",
    "alpha_pattern", "modules_to_save", "target_modules", "layers_to_transform",
    "exclude_modules", "init_lora_weights",
)  # fmt: skip
# The tensors say what they were trained for, biases too; the rest is for training, or about who
# wrote it.
WITHOUT_EFFECT = (
    "auto_mapping", "revision", "task_type", "inference_mode", "peft_version", "lora_dropout",
    "layers_pattern", "loftq_config", "eva_config", "corda_config", "lora_ga_config",
    "megatron_config", "megatron_core", "qalora_group_size", "runtime_config",
    "ensure_weight_tying", "bias",
)  # fmt: skip
# Key -> what it is, in the words of its users; unset is the only value that is plain LoRA.
VARIANTS = {
    "use_dora": "DoRA",
    "lora_bias": "LoRA with biases of its own",
    "alora_invocation_tokens": "an activated LoRA (aLoRA)",
    "trainable_token_indices": "LoRA with single trained tokens",
    "target_parameters": "LoRA on parameters that are no modules",
    "fan_in_fan_out": "LoRA on transposed weights",
    "layer_replication": "LoRA on repeated layers",
    "use_qalora": "QA-LoRA",
    "use_bdlora": "block-diagonal LoRA (BD-LoRA)",
    "arrow_config": "Arrow routing",
    "kasa_config": "KaSA",
    "velora_config": "VeLoRA",
    "monteclora_config": "MonteCLoRA",
}
DEFAULT_RANK = 8  # and LoraConfig's default of lora_alpha
_PLAIN_INITS = (True, False, "gaussian", "eva", "orthogonal")
_BASE_CHANGING = ("pissa", "olora", "loftq", "corda", "lora_ga")


@dataclass(frozen=True)
class AdapterConfig:
    """What adapter_config.json says of the merge. `where` says where a key of it is written."""

    path: Path
    base: str | None
    rank: int
    alpha: float
    rank_stabilized: bool
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    saved: tuple[str, ...]
    targets: tuple[str, ...]
    """Names of target modules that each must have; () if a regular expression chose them, or
    layers were left out."""
    where: Callable[[str], str]

    def rank_of(self, module: str) -> int:
        """Return the rank of a module's LoRA, by its full name (PEFT's `get_pattern_key`)."""
        return self.ranks.get(_pattern(self.ranks, module), self.rank)

    def scale_of(self, module: str) -> float:
        """Return what B @ A is multiplied by: alpha / r, or alpha / sqrt(r) if rank-stabilized."""
        rank = self.rank_of(module)
        alpha = self.alphas.get(_pattern(self.alphas, module), self.alpha)
        return alpha / (math.sqrt(rank) if self.rank_stabilized else rank)

    def saves(self, module: str) -> bool:
        """Return whether `modules_to_save` has a module, by its full name (PEFT compares ends)."""
        return module.endswith(self.saved)


def _pattern(patterns: Mapping[str, object], module: str) -> str:
    found = (name for name in patterns if re.match(rf"(.*\.)?({name})$", module))
    return next(found, module)


def read_adapter_config(folder: Path, where: str | None) -> AdapterConfig:
    """Return what a PEFT folder's adapter_config.json says; `where` says where the folder was
    named. Raises SourceError if there is none, or with everything that is not plain LoRA."""
    path = folder / ADAPTER_CONFIG
    if not path.is_file():
        what = f"not an adapter: {ADAPTER_CONFIG} is missing in {folder}"
        raise SourceError(Problem(what, where, "give the folder that PEFT's save_pretrained wrote"))
    config = read_json_object(path, SAVE_AGAIN)
    place = json_place(path)
    kind = config.get("peft_type")
    if kind != "LORA":
        found = f"{kind} adapters are" if kind else "an adapter without peft_type is"
        raise SourceError(Problem(f"{found} not supported, only LORA", place("peft_type"), MERGE))
    problems = [*_variants(config, place), *_wrong_values(config, place)]
    if problems:
        raise SourceError(*problems)
    targets = config.get("target_modules")
    layers = config.get("layers_to_transform")  # 0 is the first layer alone
    everywhere = (layers is None or layers == []) and not config.get("exclude_modules")
    base = config.get("base_model_name_or_path")
    return AdapterConfig(
        path=path,
        base=base if isinstance(base, str) and base.strip() else None,
        rank=config.get("r", DEFAULT_RANK),
        alpha=config.get("lora_alpha", DEFAULT_RANK),
        rank_stabilized=bool(config.get("use_rslora")),
        ranks=config.get("rank_pattern") or {},
        alphas=config.get("alpha_pattern") or {},
        saved=tuple(config.get("modules_to_save") or ()),
        targets=tuple(targets) if isinstance(targets, list) and everywhere else (),
        where=place,
    )


def _variants(config: JsonObject, where: Callable[[str], str]) -> Iterator[Problem]:
    """Yield what is not plain LoRA."""
    for key, name in VARIANTS.items():
        if config.get(key):
            yield Problem(f"{name} is not supported ({key})", where(key), MERGE)
    init = config.get("init_lora_weights", True)
    if str(init).lower().startswith(_BASE_CHANGING):
        yield Problem(
            f"an adapter that began with {init!r} is on a changed base, not on the original",
            where("init_lora_weights"),
            "save it with path_initial_model_for_weight_conversion, which makes it a plain LoRA",
        )
    elif init is not None and init not in _PLAIN_INITS:
        yield Problem(
            f"init_lora_weights {init!r} is not known to be plain LoRA",
            where("init_lora_weights"),
            MERGE,
        )
    known = {*READ, *WITHOUT_EFFECT, *VARIANTS}
    for key, value in config.items():
        if key not in known and value:
            yield Problem(
                f"key {key!r} is not known: what it does to the weights cannot be told",
                where(key),
                MERGE,
            )


def _wrong_values(config: JsonObject, where: Callable[[str], str]) -> Iterator[Problem]:
    for key, good, what in (
        ("r", _is_rank, "a whole number greater than 0"),
        ("lora_alpha", _is_number, "a number"),
    ):
        value = config.get(key, DEFAULT_RANK)
        if not good(value):
            yield Problem(f"{key} must be {what}, not {value!r}", where(key), SAVE_AGAIN)
    for key, good, what in (
        ("rank_pattern", _is_rank, "whole numbers greater than 0"),
        ("alpha_pattern", _is_number, "numbers"),
    ):
        patterns = config.get(key) or {}
        if not isinstance(patterns, dict) or not all(map(good, patterns.values())):
            yield Problem(f"{key} must give {what} to names of modules", where(key), SAVE_AGAIN)
            continue
        for pattern in patterns:
            try:
                re.compile(rf"(.*\.)?({pattern})$")
            except re.error as error:
                what = f"{key}: {pattern!r} is no regular expression: {error}"
                yield Problem(what, where(key), SAVE_AGAIN)
    if not is_texts(config.get("modules_to_save") or []):
        yield Problem(
            "modules_to_save must be a list of names", where("modules_to_save"), SAVE_AGAIN
        )


def _is_rank(value: object) -> bool:
    return is_whole_number(value) and 0 < value < 1 << 31


def _is_number(value: object) -> bool:
    return is_number(value) and abs(value) < 1e30
