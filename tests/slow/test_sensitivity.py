"""What each matrix loses alone, measured by runs that are killed: the next one goes on, and the
losses are the same."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import CommandLine
from phibuild.config.catalogue import DATA
from phibuild.worker.architecture import read_architecture
from support import warm

pytestmark = [pytest.mark.slow, pytest.mark.cold]
ROOT = Path(__file__).resolve().parents[2]
MODEL = DATA / "phi3-tiny-trained"
RECIPE = """\
model: ./model
devices: {ai_pc_rtx: {pytorch: {int4: {target_size: 4.3 MB}}}}
"""

# Measures, and kills itself while it writes some states, which it leaves without sense, or after
# some parts of lm_head.
MEASURE = """
import json, os, signal, sys
from contextlib import contextmanager
from pathlib import Path
from phibuild.worker.lean import import_lean
import_lean()
import torch
from phibuild.backends.pytorch import layerwise, memory, sensitivity
from phibuild.backends.pytorch.kept_states import KeptStates
from phibuild.worker.architecture import Architecture
from phibuild.worker.grids import Grid

given = json.load(sys.stdin)
layerwise.HEAD_ELEMENTS = 1 << 16  # several parts
counts = {"states": 0, "parts": 0}

def count(what):
    counts[what] += 1
    return counts[what] == given.get(what)

@contextmanager
def next_states(self, model, passed, real=KeptStates.next):
    with real(self, model, passed) as states:
        if count("states"):
            states[0] = torch.nan
            os.kill(os.getpid(), signal.SIGKILL)
        yield states

def save_sums(*arguments, real=sensitivity.save_sums):
    real(*arguments)
    if count("parts"):
        os.kill(os.getpid(), signal.SIGKILL)

KeptStates.next, sensitivity.save_sums = next_states, save_sums
room = Path(given["room"])
with torch.inference_mode():
    torch.set_num_threads(2)
    model = layerwise.LayerwisePhi3(Path(given["source"]),
                                    Architecture.from_json(given["architecture"]))
    found = sensitivity.measure(model, torch.tensor(given["ids"]), None,
                                Grid.from_json(given["grid"]), room, lambda fraction: None)
print(json.dumps({"found": found, **counts}))
"""


@pytest.mark.parametrize("shape", [MODEL.name, "phi4mini"])  # untied and tied
def test_killed_anywhere_it_goes_on_to_the_same_losses(
    shape: str,
    toolchain_python: Callable[[str], Path],
    checkpoint: Callable[..., Path],
    tmp_path: Path,
) -> None:
    source = MODEL if shape == MODEL.name else checkpoint(shape)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    python = toolchain_python("pytorch")

    def measure(room: Path, **kill: int) -> dict[str, Any] | None:
        room.mkdir(exist_ok=True)
        request = {
            "source": str(source),
            "architecture": read_architecture(config).to_json(),
            "grid": {"bits": 4, "group_size": 32, "zero": "code", "scale": "F16"},
            "ids": [[(7 * row + 13 * column) % 900 + 3 for column in range(64)] for row in (0, 1)],
            "room": str(room),
            **kill,
        }
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = warm.run([python, "-c", MEASURE], input=json.dumps(request), env=environ)
        if kill:
            assert done.returncode == -signal.SIGKILL, done.stderr
            return None
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    whole = measure(tmp_path / "whole")
    assert whole is not None
    layers = config["num_hidden_layers"]
    models = 2 + 4 * layers
    # Those of the embedding, of each layer (all that were met before it, too), and the norm's.
    assert whole["states"] == 2 + sum(6 + 4 * layer for layer in range(layers)) + models
    assert whole["parts"] > 2
    room = tmp_path / "killed"
    measure(room, states=4)  # at a matrix of the first layer
    measure(room, states=9)  # at one that was met before, in the next one
    measure(room, parts=2)
    rest = measure(room)
    assert rest is not None
    assert rest["found"] == whole["found"]
    assert rest["states"] == 0
    assert rest["parts"] == whole["parts"] - 2

    # States that a loss of power has left half written are no one's.
    measure(room := tmp_path / "damaged", states=12)
    with (room / "states").open("r+b") as file:
        file.seek(4 * 2 * 64 * config["hidden_size"] * 4)
        file.write(b"\xff" * 4096)
    again = measure(room)
    assert again is not None
    assert again == whole


def build(work: CommandLine) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "phibuild", "build", "recipe=mine", "evaluation=none"],
        cwd=work.folder, env={**os.environ, "PHIBUILD_STORE": str(work.folder / "store")},
        start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def begun(work: CommandLine) -> dict[str, int]:
    """Return how many models' states are kept, by the folder of what was begun."""
    found = {}
    for path in (work.folder / "store").glob("partial/*/*/places.json"):
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:  # it was finished meanwhile
            continue
        found[path.parent.name] = len(json.loads(text)["places"])
    return found


def results(work: CommandLine) -> tuple[Any, str]:
    """Return the losses, and the sha256 of the weights that were chosen by them."""
    (meta,) = (work.folder / "store").glob("references/*/meta.json")
    (weights,) = (work.folder / "store").glob("artifacts/*/model.safetensors")
    losses = json.loads(meta.read_text(encoding="utf-8"))["kl"]
    return losses, hashlib.sha256(weights.read_bytes()).hexdigest()


def prepared(work: CommandLine) -> CommandLine:
    work.folder.mkdir(exist_ok=True)
    shutil.copytree(MODEL, work.folder / "model")
    (work.folder / "recipes").mkdir()
    (work.folder / "recipes" / "mine.yaml").write_text(RECIPE, encoding="utf-8")
    return work


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, toolchain_python: Callable[[str], Path]
) -> tuple[Any, str]:
    """Return the results of a build that nothing disturbed, with one thread."""
    toolchain_python("pytorch")
    work = prepared(CommandLine(tmp_path_factory.mktemp("whole") / "work"))
    done = work("build", "recipe=mine", "evaluation=none", "executor.cores=1")
    assert done.returncode == 0, done.stdout + done.stderr
    return results(work)


@pytest.mark.every  # test_gptq.py has one of a calibration, which is kept in the same way
@pytest.mark.parametrize("changed", [False, True])
def test_a_killed_build_goes_on_but_not_of_files_that_were_changed_meanwhile(
    changed: bool, phibuild: CommandLine, whole: tuple[Any, str]
) -> None:
    work = prepared(phibuild)
    process = build(work)
    while max(begun(work).values(), default=0) < 7:
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    ((name, models),) = begun(work).items()
    if changed:  # the same content again, but nobody knows what was there before
        weights = work.folder / "model" / "model.safetensors"
        os.utime(weights, ns=(1, 1))
    process, seen = build(work), []
    while process.poll() is None:
        seen += list(begun(work).items())
        time.sleep(0.01)
    assert process.returncode == 0
    assert list((work.folder / "store" / "partial").iterdir()) == []
    if changed:
        assert seen[-1][0] != name
    else:
        assert {one for one, _ in seen} == {name}
        assert min(count for _, count in seen) == models
    assert results(work) == whole
