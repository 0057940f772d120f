"""The command line: verbs, flags, exit codes, and what `--help` costs."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import pytest

from conftest import CommandLine
from phibuild import __version__
from phibuild.backends.registry import BACKENDS
from phibuild.cli import run_command
from phibuild.commands.arguments import VERBS

HEAVY = ("hydra", "omegaconf", "pydantic", "numpy", "rich", "yaml", "tabulate", "psutil",
         "filelock", "huggingface_hub", "asyncio", "subprocess")  # fmt: skip


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["plan", "--help"]])
def test_help_imports_nothing_heavy(words: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "phibuild", *words],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    modules = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in lines}
    assert "argparse" in modules  # the output is what it is taken for
    assert not modules & set(HEAVY)


def test_help_names_every_verb(phibuild: CommandLine) -> None:
    for words in (["--help"], []):
        done = phibuild(*words)
        assert done.returncode == 0
        assert all(f"\n  {verb} " in done.stdout for verb in VERBS)
        assert "exit codes" in done.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(phibuild: CommandLine, verb: str) -> None:
    done = phibuild(verb, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: phibuild {verb}")


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_may_stand_before_its_verb(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = ArgumentParser()
    VERBS[verb].declare(parser)
    for option in parser._actions:
        value = [] if option.nargs == 0 else ["plan"]
        for name in option.option_strings:
            with pytest.raises(SystemExit):
                run_command(["--help", name, *value, verb])
            assert capsys.readouterr().out.startswith(f"usage: phibuild {verb}"), name


def test_version(phibuild: CommandLine) -> None:
    assert phibuild("--version").stdout == f"phibuild {__version__}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["biuld"], "unknown verb 'biuld'\n    did you mean 'build'?"),
        (["frobnicate"], "unknown verb 'frobnicate'\n    known: build, check, completion, diff"),
        (["plan", "--onyl", "x"], "--onyl"),
        (["list", "nonsense"], "nonsense"),
        (["toolchain", "install", "lamacpp"], "did you mean 'llamacpp'?"),
        (["run"], "CELL_OR_FOLDER"),
        (["run", "x", "y", "--max-tokens", "0"], "must be 1 or more"),
        (["plan", "--config-dir", "nowhere"], "no such folder"),
        (["plan", "recipe=nowhere"], "unknown recipe 'nowhere'"),
        (["report"], "no runs here"),
        (["verify", "nothing"], "no run, cell or artifact 'nothing'"),
        (["verify", "nothing", "--store"], "--store takes no run"),
        (["toolchain", "lock", "--old"], "--old goes with 'toolchain remove'"),
        (["run", "a.b.c.d", "hello"], "no artifact 'a.b.c.d'"),
        (["run", ".", "hello"], "no manifest.json"),
    ],
)
def test_wrong_usage(phibuild: CommandLine, words: list[str], message: str) -> None:
    done = phibuild(*words)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert list(phibuild.folder.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        ["plan", "--only", "*.mlx.int4"],
        ["--only", "*.mlx.int4", "plan"],
        ["plan", "precision=int4,int8", "-m", "--skip", "*.int8", "backend=mlx"],
    ],
)
def test_flags_stand_anywhere(phibuild: CommandLine, words: list[str]) -> None:
    done = phibuild(*words)
    assert done.returncode == 0, done.stderr
    assert "quickstart: 1 cells, 1 artifacts, 0 cached" in done.stdout


def test_plan_as_json_writes_nothing(phibuild: CommandLine) -> None:
    done = phibuild("plan", "--json", "recipe=iot")
    data: dict[str, Any] = json.loads(done.stdout)
    assert data["recipe"] == "iot"
    cell = data["cells"][0]
    assert cell["status"] in ("build", "skipped")
    assert cell["estimated_bytes"] > 0
    assert cell["device_memory_bytes"] > cell["estimated_bytes"] / 2
    assert data["disk_bytes"] > 0
    assert data["peak_build_memory_bytes"] > 0
    assert list(phibuild.folder.iterdir()) == []


def test_cfg_is_what_would_be_built(phibuild: CommandLine) -> None:
    done = phibuild("--cfg", "job", "recipe=iot", "precision=int4")
    assert done.returncode == 0
    assert "recipe: iot" in done.stdout
    assert "precision:\n- int4" in done.stdout
    assert list(phibuild.folder.iterdir()) == []


@pytest.mark.parametrize(
    ("what", "key", "some"),
    [
        ("recipes", "recipe", {"quickstart", "edge_release"}),
        ("devices", "device", {"raspberry_pi_5", "mac"}),
        ("backends", "backend", set(BACKENDS)),
        ("models", "model", {"phi3-tiny-trained", "phi-3.5-mini", "phi-4"}),
        ("precisions", "precision", {"int4", "int8", "fp16", "fp32"}),
    ],
)
def test_list(phibuild: CommandLine, what: str, key: str, some: set[str]) -> None:
    rows = json.loads(phibuild("list", what, "--json").stdout)
    assert some <= {row[key] for row in rows}


def test_own_things_are_listed(phibuild: CommandLine) -> None:
    (phibuild.folder / "recipes").mkdir()
    (phibuild.folder / "recipes" / "mine.yaml").write_text("a: [", encoding="utf-8")
    rows = json.loads(phibuild("list", "recipes", "--json").stdout)
    (mine,) = (row for row in rows if row["recipe"] == "mine")
    assert (mine["description"], mine["file"]) == (None, "recipes/mine.yaml")
    assert mine["problem"].startswith("recipes/mine.yaml:")
    assert {row["problem"] for row in rows if row["recipe"] != "mine"} == {None}


@pytest.mark.case(
    "building",
    "list --json",
    "-",
    "numbers and lists, not their texts",
)
def test_lists_as_json_have_numbers_and_lists(phibuild: CommandLine) -> None:
    rows = {
        what: {
            next(iter(row.values())): row
            for row in json.loads(phibuild("list", what, "--json").stdout)
        }
        for what in ("devices", "backends", "precisions", "models", "recipes")
    }
    pi = rows["devices"]["raspberry_pi_5"]
    assert (pi["memory"], pi["budget"], pi["context"]) == (8 << 30, 6_000_000_000, 2048)
    assert pi["accelerators"] == ["cpu"]
    options = rows["backends"]["llamacpp"]["options"]
    assert options == [
        "quality", "method", "text", "tokens", "tensor_types", "target_size", "target_kl", "type",
        "imatrix", "imatrix_tokens", "kv_cache",
    ]  # fmt: skip
    defaults = rows["precisions"]["int4"]
    assert defaults["llamacpp"] == {**dict.fromkeys(options), "imatrix_tokens": 16384}
    assert rows["models"]["phi-4"]["repo"] == "microsoft/phi-4"
    assert rows["models"]["phi-4"]["revision"] is None
    assert rows["models"]["phi3-tiny-trained"]["repo"] is None
    assert rows["models"]["phi-4"]["config"]["hidden_size"] == 5120
    assert rows["recipes"]["mobile"]["problem"] is None
    table = phibuild("list", "devices").stdout
    assert "8 GiB  " in table  # as the files have it
    assert "6 GB  " in table
    assert "cpu, vulkan" in table


def test_doctor_tells_what_is_missing(phibuild: CommandLine, tmp_path: Path) -> None:
    done = phibuild("doctor", PHIBUILD_TOOLCHAINS=str(tmp_path / "none"))
    assert "toolchain llamacpp" in done.stdout
    assert "phibuild toolchain install llamacpp" in done.stdout
    assert "Traceback" not in done.stderr


def test_toolchain_list(phibuild: CommandLine, tmp_path: Path) -> None:
    done = phibuild("toolchain", "list", PHIBUILD_TOOLCHAINS=str(tmp_path / "none"))
    assert done.stdout.count("not installed") == len(BACKENDS)


def test_a_reader_that_goes_away(phibuild: CommandLine) -> None:
    done = subprocess.run(
        f"{sys.executable} -m phibuild list devices | head -1",
        shell=True, cwd=phibuild.folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.startswith("device")
    assert done.stderr == ""
