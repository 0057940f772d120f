"""Types that were chosen matrix by matrix, as a recipe can have them: few patterns for many."""

from __future__ import annotations

import re
from collections.abc import Mapping

_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)\.weight")


def patterns(types: Mapping[str, str]) -> dict[str, str]:
    """Return `tensor_types` that give every matrix of `types`, by its name in the checkpoint, its
    type: a pattern for those of one kind in several layers."""
    layers: dict[tuple[str, str], list[str]] = {}
    found: dict[str, str] = {}
    for name, kind in types.items():
        if match := _LAYER.fullmatch(name):
            layers.setdefault((match[2], kind), []).append(match[1])
        else:
            found[f"^{re.escape(name)}$"] = kind
    for (role, kind), numbers in layers.items():
        found[rf"^model\.layers\.({'|'.join(numbers)})\.{re.escape(role)}\.weight$"] = kind
    return found


def types_yaml(types: Mapping[str, str]) -> str:
    """Return the option `tensor_types` as YAML."""
    lines = [f"  '{pattern}': {kind}" for pattern, kind in patterns(types).items()]
    return "\n".join(["tensor_types:", *lines])
