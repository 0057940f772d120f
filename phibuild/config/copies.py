"""Copies of the files of a recipe as Hydra is to compose them: names are text and every list of
precisions is a mapping, so that all of them merge. Lines for errors come from the files."""

from __future__ import annotations

from collections.abc import Mapping

from omegaconf import DictConfig, ListConfig, OmegaConf

from phibuild.config.edits import as_mappings, is_names, is_precisions
from phibuild.config.yamlfile import Data, KeyPath, YamlFile


def plain(config: DictConfig | ListConfig, *, resolve: bool) -> Data:
    """Return a mapping of OmegaConf's as plain data; `resolve` puts in what `${key}` stands for."""
    data = OmegaConf.to_container(config, resolve=resolve)
    assert isinstance(data, dict)
    return {str(key): value for key, value in data.items()}


def read_copy(file: YamlFile) -> Data:
    """Return a checked file as OmegaConf reads it, interpolations unresolved."""
    return plain(OmegaConf.load(file.path), resolve=False)


def recipe_copies(chain: Mapping[str, YamlFile]) -> dict[str, Data]:
    """Return the recipes of a chain, its first the one asked for, under names that are no numbers
    in any grammar ("r0", "r1", ...): what Hydra composes as the recipe is "r0".

    A list of precisions in a later recipe takes those it does not name out of the earlier ones;
    the last model is the model.
    """
    safe = {name: f"r{number}" for number, name in enumerate(chain)}
    copies = {name: read_copy(file) for name, file in chain.items()}
    lists: dict[KeyPath, set[str]] = {}
    has_model = False
    for name in reversed(_merge_order(next(iter(chain)), chain)):
        data = copies[name]
        data.pop("hydra", None)  # refused when the recipe is validated
        if has_model:
            data.pop("model", None)
        elif "model" in data:
            has_model = True
            data["model"] = _model_text(data["model"], chain[name])
        _only_listed(data, lists)
        if "defaults" in data:
            data["defaults"] = [safe.get(str(entry), entry) for entry in _entries(chain[name])]
    return {safe[name]: as_mappings(data) for name, data in copies.items()}


def _entries(file: YamlFile) -> list[str]:
    return [entry for entry, _ in file.entries("defaults") or () if entry is not None]


def _merge_order(name: str, chain: Mapping[str, YamlFile]) -> list[str]:
    """Return the recipes in the order that Hydra merges them: a defaults list from its start, the
    recipe itself where `_self_` stands, or last."""
    entries = _entries(chain[name])
    order: list[str] = []
    for entry in entries if "_self_" in entries else [*entries, "_self_"]:
        order += [name] if entry == "_self_" else _merge_order(entry, chain)
    return order


def _model_text(model: object, file: YamlFile) -> object:
    """Return a model with every name as it was written: 2024.10 is one, and no number."""
    if isinstance(model, dict):
        return {key: file.text_at(("model", key), value) for key, value in model.items()}
    return file.text_at(("model",), model)


def _only_listed(data: Data, lists: dict[KeyPath, set[str]]) -> None:
    """Take what a later list does not name out of a recipe, and note the recipe's own lists."""

    def visit(node: object, path: KeyPath) -> None:
        if not isinstance(node, dict):
            return
        for key, value in node.items():
            here = (*path, key)
            if not is_precisions(here):
                visit(value, here)
                continue
            listed = lists.get(here)
            if is_names(value):
                lists.setdefault(here, set(value))
            if listed is not None and isinstance(own := as_mappings(value, here), dict):
                node[key] = {name: child for name, child in own.items() if name in listed}

    for key in ("devices", "backends"):
        visit(data.get(key), (key,))
