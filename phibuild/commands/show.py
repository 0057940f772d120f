"""`phibuild show`: a device, a recipe, a backend or a model, whose it is, and what it could say."""

from __future__ import annotations

import argparse
import itertools
import textwrap
from collections.abc import Iterable, Iterator

from phibuild.backends.registry import BACKENDS, backend
from phibuild.commands.answers import OtherValue, ShowAnswer, ShowKind, ShownKey
from phibuild.commands.common import make_catalogue
from phibuild.config.catalogue import Catalogue
from phibuild.config.roots import shipped_root
from phibuild.config.yamlfile import YamlFile
from phibuild.errors import EXIT_OK, ConfigError, Problem, suggest
from phibuild.planning.showing import Key, backend_keys, file_keys, recipe_keys
from phibuild.planning.shown_values import shown
from phibuild.schema import document_text
from phibuild.system.plugins import plugin

_WIDTH = 100


def run(arguments: argparse.Namespace) -> int:
    """Print the file, and every key."""
    catalogue, kind, name = make_catalogue(arguments), arguments.kind, arguments.name
    known = list(BACKENDS) if kind == "backend" else list(catalogue.files(kind))
    if name not in known:
        what = f"unknown {kind} {name!r}"
        raise ConfigError(Problem(what, "command line", suggest(name, known)))
    answer = _answer(kind, name, catalogue)
    if arguments.json:
        print(document_text(answer))
        return EXIT_OK
    print(f"{kind} {name}: {answer.file or 'no file'} ({answer.origin})")
    for hidden in answer.hides:
        print(f"  in place of {hidden}")
    for other in answer.over:
        print(f"  over {other}")
    if answer.text is not None:
        print(f"\n{answer.text.rstrip()}")
    print()
    for line in _backend_lines(answer.keys) if kind == "backend" else _lines(answer.keys):
        print(line)
    return EXIT_OK


def _answer(kind: ShowKind, name: str, catalogue: Catalogue) -> ShowAnswer:
    over: list[YamlFile] = []
    file: YamlFile | None
    match kind:
        case "backend":
            backend(name)  # or why it cannot be used
            file, keys = catalogue.backend_file(name), backend_keys(name, catalogue)
        case "recipe":
            file, keys = catalogue.recipe_files[name], recipe_keys(name, catalogue)
            over = [catalogue.recipe_files[other] for other, _ in file.entries("defaults") or ()
                    if other in catalogue.recipe_files]  # fmt: skip
        case _:
            file = catalogue.files(kind)[name]
            _ = catalogue.device(name) if kind == "device" else catalogue.model(name)
            keys = file_keys(kind, file, catalogue)
    layers = catalogue.layers(kind).get(name, [])
    return ShowAnswer(
        kind=kind,
        name=name,
        file=file.shown if file else None,
        origin=_origin(kind, name, file),
        hides=[f"{other.shown} ({_origin(kind, name, other)})" for other in layers[1:]],
        over=[other.shown for other in over],
        text=file.path.read_text(encoding="utf-8") if file else None,
        keys=[_shown_key(key) for key in keys],
    )


def _shown_key(key: Key) -> ShownKey:
    over = [OtherValue(value=value, where=where) for value, where in key.over]
    return ShownKey(
        key=key.key, values=key.values, required=key.required, default=key.default,
        meaning=key.meaning, value=key.value, where=key.where, over=over,
    )  # fmt: skip


def _origin(kind: ShowKind, name: str, file: YamlFile | None) -> str:
    """Say whose a file is."""
    root = shipped_root("recipes" if kind == "recipe" else "conf").resolve()
    if file is None or (file.path.name == "conf.yaml" and kind == "backend"):
        return f"comes with {plugin(name).owner}"
    return "ships with phibuild" if file.path.resolve().is_relative_to(root) else "your own"


def _lines(keys: Iterable[ShownKey]) -> Iterator[str]:
    """Yield what each key is, may be and means; options of cells below the cell, in a line each."""
    cell = None
    for key in keys:
        place, _, option = key.key.rpartition(".")
        if not key.key.startswith("devices."):
            yield f"{key.key}: {shown(key.value)}{_told(key.where)}"
            yield from _wrapped(_values(key))
            yield from _wrapped(key.meaning)
            continue
        if place != cell:
            yield f"{place}:"
            cell = place
        if key.value in (None, []) and all(other.value in (None, []) for other in key.over):
            continue
        over = "".join(f", over {shown(one.value)} of {one.where}" for one in key.over)
        yield f"    {option}: {shown(key.value)}   ({key.where}{over})"


def _backend_lines(keys: Iterable[ShownKey]) -> Iterator[str]:
    """Yield each option with its meaning, and its values at each precision."""
    options: dict[str, list[ShownKey]] = {}
    for key in keys:
        options.setdefault(key.key.partition(".")[2], []).append(key)
    for option, found in options.items():
        yield f"{option}:"
        yield from _wrapped(found[0].meaning)
        for text, same in itertools.groupby(found, key=_values):
            precisions = ", ".join(key.key.partition(".")[0] for key in same)
            yield from _wrapped(f"{precisions}: {text}")


def _values(key: ShownKey) -> str:
    return f"{key.values}; " + ("required" if key.required else f"default {shown(key.default)}")


def _told(where: str | None) -> str:
    return f"   ({where})" if where else ""


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent="    ", subsequent_indent="      ")
