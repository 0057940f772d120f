"""The example of docs/backend_tutorial.md, installed as a user installs it: the contract of all
backends, from its own package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from uv import find_uv_bin

from conftest import ROOT, CommandLine
from phibuild.backends.registry import SHIPPED
from phibuild.toolchains.pip_config import no_index, uv_environment
from support.contract import SHAPES, check_backend, check_long_windows, check_text
from support.kinds import some
from support.lent import Pool

EXAMPLE = ROOT / "examples" / "phibuild-numpy"
PRECISIONS = ("fp32", "int8")
RECIPE = ("--config-dir", str(EXAMPLE))
PROMPT = "def main(argv):\n    x = 1\n"


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the interpreter of an environment with phibuild and the example, not their trees."""
    venv = tmp_path_factory.mktemp("example") / "venv"
    python = venv / "bin" / "python"
    environ = {key: value for key, value in os.environ.items() if key != "VIRTUAL_ENV"}
    for words in (
        ["venv", "--quiet", "--no-project", "--python", sys.executable, str(venv)],
        ["pip", "install", "--quiet", *(["--no-index"] if no_index() else []),
         "--python", str(python), str(ROOT), str(EXAMPLE)],
    ):  # fmt: skip
        done = subprocess.run(
            [find_uv_bin(), *words], cwd=venv.parent, env={**environ, **uv_environment()},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    return str(python)


@pytest.fixture
def phibuild(tmp_path: Path, python: str, pool: Path) -> CommandLine:
    folder = tmp_path / "work"
    folder.mkdir()
    return CommandLine(folder, python=python, pool=Pool(pool))


@pytest.fixture(scope="module")
def store(shared_folder: Path) -> str:
    return str(shared_folder / "example-store")


@pytest.mark.parametrize("shape", some(SHAPES, ["phi3"]))
def test_contract(
    shape: str, store: str, checkpoint: Callable[..., Path], phibuild: CommandLine
) -> None:
    source = checkpoint(shape, shards=2 if shape == "phi4" else 1)
    words = {"store": store, "recipe": "numpy", "precisions": PRECISIONS}
    cells = check_backend(phibuild, source, "numpy", *RECIPE, **words)  # type: ignore[arg-type]
    assert {cell["judged"]["how"] for cell in cells.values()} == {"native"}
    if shape == "phi3":
        check_text(phibuild, cells["int8"], store)


@pytest.mark.every
def test_long_windows_take_no_more_memory_than_planned(
    store: str, checkpoint: Callable[..., Path], phibuild: CommandLine
) -> None:
    source = checkpoint("phi3", layers=2, vocab_size=32_064)
    check_long_windows(phibuild, source, "precision=int8", *RECIPE, store=store, recipe="numpy")


@pytest.mark.every
def test_long_factors_and_a_window(
    store: str, checkpoint: Callable[..., Path], phibuild: CommandLine
) -> None:
    """A text beyond the original context, which decoding step by step goes on from, and attention
    that does not reach back over all of it."""
    overrides = {"original_max_position_embeddings": 64, "sliding_window": 48}
    source = checkpoint("phi3", **overrides)
    words = {"store": store, "recipe": "numpy", "precisions": PRECISIONS}
    cells = check_backend(phibuild, source, "numpy", *RECIPE, **words)  # type: ignore[arg-type]
    assert cells["fp32"]["quality"]["kl_mean"] < 1e-8


def test_it_says_what_pytorch_says(store: str, phibuild: CommandLine) -> None:
    words = ["devices.ai_pc_rtx={pytorch: [fp32]}", "precision=fp32", "evaluation=none", *RECIPE]
    done = phibuild("build", "recipe=numpy", *words, PHIBUILD_STORE=store)
    assert done.returncode == 0, done.stdout + done.stderr
    said = []
    for cell in phibuild.report("numpy")["cells"]:
        run = phibuild("run", cell["id"], "--raw", PROMPT, PHIBUILD_STORE=store)
        assert run.returncode == 0, run.stderr
        said.append(run.stdout)
    assert len(said) == 2
    assert said[0] == said[1]
    assert len(said[0]) > 20


def listed(phibuild: CommandLine, *words: str) -> dict[str, Any]:
    done = phibuild(*words, "--json")
    assert done.returncode == 0, done.stderr
    return {next(iter(row.values())): row for row in json.loads(done.stdout)}


def test_it_is_one_of_all_backends(phibuild: CommandLine) -> None:
    backends = listed(phibuild, "list", "backends")
    assert tuple(backends) == (*SHIPPED, "numpy")
    assert backends["numpy"]["options"] == ["clip"]
    assert listed(phibuild, "list", "precisions")["int8"]["numpy"] == {"clip": 1.0}
    assert tuple(listed(phibuild, "toolchain", "list")) == (*SHIPPED, "numpy")
    assert "toolchain numpy" in listed(phibuild, "doctor")


def test_its_options(phibuild: CommandLine) -> None:
    plan = ("plan", "recipe=numpy", *RECIPE, "--json")
    cell = "devices.raspberry_pi_5.numpy"
    done = phibuild(*plan, "precision=int8", f"{cell}.int8.clip=0.9")
    assert [one["variant"] for one in json.loads(done.stdout)["cells"]] == ["int8-clip0.9"]
    for word, message in (
        (f"{cell}.fp32.clip=0.9", "only int8 has codes"),
        (f"{cell}.int8.clip=2", "option 'clip' of numpy: must be less than or equal to 1"),
        (f"{cell}.int8.clap=1", "did you mean 'clip'?"),
    ):
        done = phibuild(*plan, word)
        assert (done.returncode, done.stdout) == (2, "")
        assert message in done.stderr
    done = phibuild(*plan, f"{cell}=[int4]")
    assert done.returncode == 2
    assert "the arrays are int8 or fp32, not int4" in done.stderr
