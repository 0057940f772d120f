"""`phibuild init`: what it writes plans at once, is right by its schemas, overwrites nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_args

import pytest
import yaml
from jsonschema import Draft7Validator

from conftest import ROOT, CommandLine
from phibuild.schema import Accelerator, DeviceClass
from support.kinds import some
from support.refusals import snapshot

pytestmark = pytest.mark.lent

LINE = re.compile(r"# yaml-language-server: \$schema=(\S+)")
WRITTEN = {"recipes/ours.yaml", "conf/device/our_device.yaml"}


def check_files(folder: Path) -> None:
    """See that each file is right by the schema that it names."""
    for name in WRITTEN:
        path = folder / name
        text = path.read_text(encoding="utf-8")
        found = LINE.match(text)
        assert found
        schema = json.loads((path.parent / found[1]).read_text(encoding="utf-8"))
        assert list(Draft7Validator(schema).iter_errors(yaml.safe_load(text))) == []
    recipe = json.loads((folder / "conf/schema/recipe.json").read_text(encoding="utf-8"))
    assert "our_device" in recipe["properties"]["devices"]["properties"]


def test_what_it_writes_plans_at_once(phibuild: CommandLine) -> None:
    done = phibuild("init")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("next: phibuild plan recipe=ours\n")
    files = {path for path in phibuild.folder.rglob("*") if path.is_file()}
    names = {str(path.relative_to(phibuild.folder)) for path in files}
    assert names >= WRITTEN
    assert {name for name in names - WRITTEN if not name.startswith("conf/schema/")} == set()
    check_files(phibuild.folder)
    planned = json.loads(phibuild("plan", "recipe=ours", "--json").stdout)
    assert [cell["id"] for cell in planned["cells"]] == [
        "phi3-tiny-trained.our_device.llamacpp.int4",
        "phi3-tiny-trained.our_device.llamacpp.int8",
        "phi3-tiny-trained.intel_n100.openvino.int4",
        "phi3-tiny-trained.intel_n100.openvino.int8",
    ]
    checked = phibuild("check")
    assert (checked.returncode, checked.stdout) == (0, "checked 2 files: 0 problems\n")


def test_a_folder_of_its_own(phibuild: CommandLine) -> None:
    done = phibuild("init", "new/ours")
    assert done.returncode == 0
    assert done.stdout.endswith("next: cd new/ours; phibuild plan recipe=ours\n")
    planned = phibuild("plan", "recipe=ours", "--config-dir", "new/ours")
    assert planned.returncode == 0, planned.stderr


SHIPPED = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("name", some(SHIPPED, ["every_backend", "iot", "quickstart"]))
def test_from_a_recipe_that_ships(name: str, phibuild: CommandLine) -> None:
    done = phibuild("init", "--from", name)
    assert done.returncode == 0, done.stderr
    check_files(phibuild.folder)
    ours = json.loads(phibuild("plan", "recipe=ours", "--json").stdout)["cells"]
    theirs = json.loads(phibuild("plan", f"recipe={name}", "--json").stdout)["cells"]
    assert [cell["id"] for cell in ours if ".our_device." not in cell["id"]] == [
        cell["id"] for cell in theirs
    ]
    assert len(ours) == len(theirs) + 1


def test_nothing_is_overwritten(phibuild: CommandLine) -> None:
    for name in ("recipes/ours.yaml", "conf/device/our_device.yaml", "conf/schema/device.json"):
        folder = phibuild.folder / name.split("/")[-1].split(".")[0]
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("mine")
        before = snapshot(phibuild.folder)
        done = phibuild("init", folder.name)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == (
            f"error: {folder.name}: already there: {folder.name}/{name}\n"
            "    nothing was written; give another folder: phibuild init FOLDER\n"
        )
        assert snapshot(phibuild.folder) == before


def test_what_is_no_folder_and_no_recipe(phibuild: CommandLine) -> None:
    (phibuild.folder / "file").write_text("mine")
    before = snapshot(phibuild.folder)
    for words, said in (
        (["file"], "file: is no folder"),
        (["file/below"], "file: is no folder"),
        (["--from", "iott"], "command line: --from: phibuild ships no recipe 'iott'\n"
         "    did you mean 'iot'?"),
        (["~no-such-user/x"], "no such home folder"),
    ):  # fmt: skip
        done = phibuild("init", *words)
        assert (done.returncode, done.stdout) == (2, "")
        assert said in done.stderr
    assert snapshot(phibuild.folder) == before


def test_comments_name_all_that_there_is() -> None:
    text = (ROOT / "phibuild/data/init/device.yaml").read_text(encoding="utf-8")
    words = set(re.findall(r"\w+", " ".join(re.findall(r"#(.*)", text))))
    assert {*get_args(Accelerator), *get_args(DeviceClass)} - words == set()
