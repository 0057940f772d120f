"""The JSON Schemas in docs/schema: equal to the code, and true of what phibuild writes."""

from __future__ import annotations

import json

import pytest

from conftest import ROOT, CommandLine
from phibuild.commands.answers import VerifyAnswer
from phibuild.commands.schema import DOCUMENTS, schema_text
from phibuild.schema import document_text

FOLDER = ROOT / "docs" / "schema"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_files_are_the_codes(name: str) -> None:
    path = FOLDER / f"{name}.json"
    assert path.exists(), f"{path}: missing; 'phibuild schema --write docs/schema' makes it"
    assert path.read_text(encoding="utf-8") == schema_text(name), (
        f"{path} is not what the code says; 'phibuild schema --write docs/schema' makes it anew"
    )


def test_there_are_no_others() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(DOCUMENTS)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_part_says_which_keys_it_has(name: str) -> None:
    """Only options and a published config hold whatever they hold."""
    schema = json.loads(schema_text(name))
    assert schema["$schema"].startswith("https://json-schema.org/")
    assert schema["title"]
    open_parts = [
        part
        for part, found in {"": schema, **schema.get("$defs", {})}.items()
        if found.get("type") == "object" and found.get("additionalProperties", True) is True
    ]
    assert open_parts == []


def test_figures_are_numbers_with_their_meaning() -> None:
    quality = json.loads(schema_text("report"))["$defs"]["Quality"]
    assert quality["properties"]["kl_mean"]["type"] == "number"
    assert "in nats" in quality["properties"]["kl_mean"]["description"]
    assert not {"native_kl", "runtime_kl"} & set(quality["required"])
    memory = json.loads(schema_text("list-devices"))["$defs"]["DeviceRow"]["properties"]["memory"]
    assert memory == {"type": "integer", "description": "Bytes."}


def test_names_that_are_no_text_stay_as_they_are() -> None:
    """Python has a lone surrogate for each byte of a file name that is no UTF-8."""
    assert json.loads(document_text(VerifyAnswer({"\udce9": ["\udce9"]}))) == {"\udce9": ["\udce9"]}


def test_the_command_line(phibuild: CommandLine) -> None:
    listed = phibuild("schema")
    assert listed.returncode == 0
    names = [line.split()[0] for line in listed.stdout.splitlines()[2:]]
    assert names[: len(DOCUMENTS)] == list(DOCUMENTS)
    assert {"recipe", "device"} <= set(names)
    assert phibuild("schema", "report").stdout == schema_text("report")
    wrong = phibuild("schema", "rapport")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "unknown schema 'rapport'" in wrong.stderr
    assert "did you mean 'report'" in wrong.stderr
    assert phibuild("schema", "plan", "--write", "one").returncode == 0
    assert [path.name for path in (phibuild.folder / "one").iterdir()] == ["plan.json"]
    assert phibuild("schema", "--write", "all").returncode == 0
    assert {path.stem for path in (phibuild.folder / "all").iterdir()} == set(DOCUMENTS)
    (phibuild.folder / "file").touch()
    for folder in ("file", "~no-such-user/x"):
        failed = phibuild("schema", "--write", folder)
        assert failed.returncode == 2
        assert failed.stderr.startswith("error: ")
