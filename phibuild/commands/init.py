"""`phibuild init`: a recipe, a device and the schemas, to start from."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path

from phibuild.commands.schema import file_schema_texts
from phibuild.config.catalogue import DATA, Catalogue
from phibuild.config.yamlfile import show_path
from phibuild.errors import EXIT_OK, ConfigError, Problem, suggest
from phibuild.planning.file_schemas import FOLDER
from phibuild.system.files import write_atomically
from phibuild.system.places import user_path

_TEMPLATES = DATA / "init"
_RECIPE, _DEVICE = Path("recipes/ours.yaml"), Path("conf/device/our_device.yaml")
_OURS = "  our_device: {llamacpp: [int4]}   # conf/device/our_device.yaml\n"
_MODEL = "# model: ./my-phi   # or a name of 'phibuild list models', or org/name@revision\n"


def run(arguments: argparse.Namespace) -> int:
    """Write what a folder of one's own begins with, if nothing of it is there."""
    folder = user_path(arguments.folder, arguments.folder)
    texts = {folder / name: text for name, text in _texts(arguments.start, folder).items()}
    _check_free(folder, texts)
    written: list[Path] = []
    try:
        for path, text in texts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            written.append(path)
            write_atomically(path, text)
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise
    for name in (_RECIPE, _DEVICE):
        print(f"wrote {show_path(folder / name)}")
    schemas = folder / "conf" / FOLDER
    print(f"wrote {show_path(schemas)}/: what editors know of these files")
    here = folder.resolve() == Path.cwd().resolve()
    print("next: " + ("" if here else f"cd {arguments.folder}; ") + "phibuild plan recipe=ours")
    return EXIT_OK


def _texts(start: str | None, folder: Path) -> dict[Path, str]:
    """Return what to write, by path below the folder."""
    device = _TEMPLATES / "device.yaml"
    recipe = _TEMPLATES / "recipe.yaml"
    catalogue = Catalogue(folder.resolve(), given={"device": {_DEVICE.stem: device}})
    schemas = file_schema_texts(folder / "conf" / FOLDER, catalogue)
    return {
        _RECIPE: _started(start) if start else recipe.read_text(encoding="utf-8"),
        _DEVICE: device.read_text(encoding="utf-8"),
        **{Path("conf") / FOLDER / f"{name}.json": text for name, text in schemas.items()},
    }


def _started(name: str) -> str:
    """Return the text of a recipe that ships with phibuild, with our device in it."""
    shipped = Catalogue(shipped_alone=True).recipe_files
    if name not in shipped:
        what = f"phibuild ships no recipe {name!r}"
        raise ConfigError(Problem(what, "command line: --from", suggest(name, shipped)))
    text = shipped[name].path.read_text(encoding="utf-8")
    if not re.search(r"^model:", text, re.M):
        text = re.sub(r"^(?=description:|devices:)", _MODEL, text, count=1, flags=re.M)
    if re.search(r"^devices:$", text, re.M):
        return re.sub(r"^devices:\n", f"devices:\n{_OURS}", text, count=1, flags=re.M)
    return f"{text}devices:\n{_OURS}"


def _check_free(folder: Path, texts: Mapping[Path, str]) -> None:
    """Raise ConfigError where something that would be written is there already."""
    there = [show_path(path) for path in texts if path.exists() or path.is_symlink()]
    if there:
        more = f" and {len(there) - 3} more" if len(there) > 3 else ""
        what = f"already there: {', '.join(there[:3])}{more}"
        remedy = "nothing was written; give another folder: phibuild init FOLDER"
        raise ConfigError(Problem(what, show_path(folder), remedy))
    for path in texts:
        above = next(parent for parent in path.parents if parent.exists())
        if not above.is_dir():
            raise ConfigError(Problem("is no folder", show_path(above)))
