"""Copies of the files of a recipe as Hydra is to compose them: names are text and every list of
precisions is a mapping, so that all of them merge. Lines for errors come from the files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from omegaconf import DictConfig, ListConfig, OmegaConf

from phibuild.config.edits import as_mappings, is_names, is_precisions, is_variants
from phibuild.config.yamlfile import Data, KeyPath, YamlFile
from phibuild.worker.json_values import as_object


def plain(config: DictConfig | ListConfig, *, resolve: bool) -> Data:
    """Return a mapping of OmegaConf's as plain data; `resolve` puts in what `${key}` stands for."""
    data = OmegaConf.to_container(config, resolve=resolve)
    return {str(key): value for key, value in as_object(data, "a configuration").items()}


def read_copy(file: YamlFile) -> Data:
    """Return a checked file as OmegaConf reads it, interpolations unresolved."""
    return plain(OmegaConf.load(file.path), resolve=False)


def recipe_copies(chain: Mapping[str, YamlFile]) -> dict[str, Data]:
    """Return the recipes of a chain, its first the one asked for, under names that are no numbers
    in any grammar ("r0", "r1", ...): what Hydra composes as the recipe is "r0".

    A list of precisions in a later recipe takes those it does not name out of the earlier ones;
    a list of variants counts whole, and so do the options that come after one; the last model is
    the model.
    """
    safe = {name: f"r{number}" for number, name in enumerate(chain)}
    copies = {name: read_copy(file) for name, file in chain.items()}
    lists: dict[KeyPath, set[str]] = {}
    has_model = False
    order = _merge_order(next(iter(chain)), chain)
    for name in reversed(order):
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
    copies = {name: as_mappings(data) for name, data in copies.items()}
    holders: dict[KeyPath, list[Data]] = {}
    for name in order:
        _count_whole(copies[name], holders)
    return {safe[name]: data for name, data in copies.items()}


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


def _holders(
    node: object, wanted: Callable[[KeyPath], bool], path: KeyPath = ()
) -> Iterator[tuple[Data, str, KeyPath]]:
    """Yield each path that is `wanted`, of those below the node at `path`, after the mapping that
    holds what stands there and its key in it."""
    if not isinstance(node, dict):
        return
    for key, value in node.items():
        here = (*path, key)
        if wanted(here):
            yield node, key, here
        else:
            yield from _holders(value, wanted, here)


def _only_listed(data: Data, lists: dict[KeyPath, set[str]]) -> None:
    """Take what a later list does not name out of a recipe, and note the recipe's own lists."""
    for holder, key, path in _holders(data, is_precisions):
        value = holder[key]
        listed = lists.get(path)
        if is_names(value):
            lists.setdefault(path, set(value))
        if listed is not None and isinstance(own := as_mappings(value, path), dict):
            holder[key] = {name: child for name, child in own.items() if name in listed}


def _count_whole(data: Data, holders: dict[KeyPath, list[Data]]) -> None:
    """Make the options of a precision in a recipe fit those of the earlier ones, which `holders`
    has by their path: a list and a mapping do not merge, so that the later one counts alone, and
    one that says nothing leaves what is there."""
    for holder, key, path in _holders(data, is_variants):
        earlier = holders.setdefault(path, [])
        before, value = earlier[-1][key] if earlier else {}, holder[key]
        match before, value:
            case list(), {} if not value:
                holder[key] = before
            case list(), list():
                pass
            case list(), _:
                for one in earlier:
                    one[key] = {}
            case _, list():
                for one in earlier:
                    one[key] = value
        earlier.append(holder)
