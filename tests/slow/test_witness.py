"""Transformers as the witness of phibuild's reading: it finds what is planted, and only that."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from phibuild.checkpoints.facts import Checkpoint, load_checkpoint
from phibuild.worker.architecture import Architecture
from support import warm

pytestmark = [pytest.mark.slow, pytest.mark.cold]

ROOT = Path(__file__).resolve().parents[2]
# A list of [original, view, architecture, layers]: distances, or what is wrong.
SOURCES = """
import io, json, sys, tempfile
from phibuild.worker.lean import import_lean
import_lean()
from phibuild.backends.pytorch import worker
from phibuild.worker.protocol import Report
answers = []
for original, view, arch, layers in json.load(sys.stdin):
    events = io.StringIO()
    with tempfile.TemporaryDirectory() as output:
        worker.source({"item": "k", "original": original, "source": view, "architecture": arch,
                       "layers": layers, "fusing": {}, "adapter": None, "allow_nonfinite": False,
                       "threads": 1, "output": output}, Report(events))
    answers.append([json.loads(line) for line in events.getvalue().splitlines()][-1])
json.dump(answers, sys.stdout)
"""


# Makes the view of a checkpoint as the core of the phibuild in the working directory does.
VIEW = """
import sys
from pathlib import Path
from phibuild.checkpoints.facts import load_checkpoint
from phibuild.checkpoints.view import make_view
make_view(load_checkpoint(Path(sys.argv[1]), "x", "x"), Path(sys.argv[2]))
"""


@dataclass(frozen=True)
class Reading:
    """A checkpoint, how phibuild reads it, and the layers that the witness runs."""

    source: Path
    arch: Architecture
    layers: tuple[int, ...] | None = None


def _ask(
    python: Path, readings: list[Reading], folder: Path, package: Path = ROOT
) -> list[dict[str, Any]]:
    """Have the witness of the phibuild in `package` hear all readings in one process."""
    given = []
    for number, reading in enumerate(readings):
        view = folder / str(number)
        view.mkdir(parents=True)
        core = [sys.executable, "-c", VIEW, str(reading.source), str(view)]
        subprocess.run(core, cwd=package, check=True)
        given.append([str(reading.source), str(view), reading.arch.to_json(), reading.layers])
    done = warm.run(
        [python, "-c", SOURCES],
        input=json.dumps(given),
        cwd=package,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    answers: list[dict[str, Any]] = json.loads(done.stdout)
    return answers


@pytest.fixture(scope="module")
def loaded(checkpoint: Callable[..., Path]) -> Callable[..., Checkpoint]:
    """Return (shape, **changes) -> a checkpoint as phibuild reads it."""
    return lambda shape, **changes: load_checkpoint(checkpoint(shape, **changes), "x", "x")


@pytest.mark.case(
    "witness",
    "a right reading, of the whole or of a copy of two layers",
    "the same logits",
    "goes on, to 1e-5 relative",
)
def test_a_right_reading_is_that_of_transformers(
    loaded: Callable[..., Checkpoint], toolchain_python: Callable[[str], Path], tmp_path: Path
) -> None:
    """Whole and cut down; beyond the original positions too, where the other factors hold."""
    readings = []
    for shape, changes in (
        ("phi3", {"shards": 3}),
        ("phi4mini", {"dtype": "fp32"}),
        ("phi4", {"dtype": "fp16"}),
        ("phi3", {"sliding_window": 20}),
    ):
        found = loaded(shape, **changes)
        assert found.folder is not None
        readings.append(Reading(found.folder, found.architecture))
        readings.append(Reading(found.folder, found.architecture, (0, 3)))
    answers = _ask(toolchain_python("pytorch"), readings, tmp_path)
    for answer in answers:
        assert answer["event"] == "item", answer
        assert answer["result"]["distance"] <= 1e-5


# What phibuild would not have read -> the architecture that it would have made, and what of the
# error names it.
UNREAD: dict[str, tuple[Callable[[Architecture], Architecture], str]] = {
    "rope_theta": (
        lambda arch: replace(arch, rope=replace(arch.rope, theta=9999.0)), "rope rope_theta",
    ),
    "partial_rotary_factor": (
        lambda arch: replace(arch, rope=replace(arch.rope, partial=1.0, short=(), long=())),
        "rope partial_rotary_factor",
    ),
    "rope_scaling": (
        lambda arch: replace(arch, rope=replace(arch.rope, short=(), long=())), "rope rope_type",
    ),
    "attention_factor": (
        lambda arch: replace(arch, rope=replace(arch.rope, attention_factor=1.3)), "logits differ",
    ),
    "original_max_position_embeddings": (
        lambda arch: replace(arch, original_max_positions=8192),
        "original_max_position_embeddings as 4096",
    ),
    "rms_norm_eps": (lambda arch: replace(arch, norm_eps=2e-5), "rms_norm_eps as 1e-05"),
    "sliding_window": (lambda arch: replace(arch, sliding_window=None), "sliding_window as 262144"),
    "tie_word_embeddings, and an own head dropped": (
        lambda arch: replace(arch, tied=True), "phibuild does not read lm_head.weight",
    ),
}  # fmt: skip


@pytest.mark.case(
    "witness",
    "a key of config.json that phibuild would not read: nine of them, planted",
    "other logits",
    "the run fails before anything is built, naming the key",
)
def test_a_key_that_is_not_read_is_found(
    checkpoint: Callable[..., Path],
    toolchain_python: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    source = checkpoint("phi4mini", tie_word_embeddings=False)
    right = load_checkpoint(source, "x", "x").architecture
    readings = [Reading(source, change(right)) for change, _ in UNREAD.values()]
    answers = _ask(toolchain_python("pytorch"), readings, tmp_path)
    for (key, (_, named)), answer in zip(UNREAD.items(), answers, strict=True):
        assert answer["event"] == "failed", key
        assert "logits differ" in answer["error"]
        assert named in answer["error"], key


# A line of phibuild's reader -> the mistake in its place.
PLANTED = {
    "layers swapped": (
        "backends/pytorch/layerwise.py",
        'return f"model.layers.{number}.{name}"',
        'return f"model.layers.{self.config.num_hidden_layers - 1 - number}.{name}"',
    ),
    "the final norm dropped": (
        "backends/pytorch/layerwise.py",
        'self._weights.fill("model.norm.weight", self._norm.weight)',
        "self._norm.weight.fill_(1.0)",
    ),
    "rows of a tensor from the wrong place": (
        "backends/pytorch/stored_weights.py",
        "begin, count = info.offset + first * row_bytes,",
        "begin, count = info.offset + max(0, first - 1) * row_bytes,",
    ),
    "factors of long and short swapped": (
        "worker/architecture.py",
        'tuple(rope["short"]),\n                tuple(rope["long"]),',
        'tuple(rope["long"]),\n                tuple(rope["short"]),',
    ),
    "an older save read in place of model.safetensors": (
        "worker/safetensors.py",
        "if (folder / SINGLE).is_file():",
        "if not (folder / INDEX).is_file():",
    ),
}


@pytest.mark.case(
    "witness",
    "layers swapped, a norm dropped, rows from the wrong place, factors swapped, an older save "
    "read: planted",
    "other logits",
    "the run fails before anything is built, saying how far apart",
)
def test_mistakes_in_the_reader_are_found(
    checkpoint: Callable[..., Path],
    toolchain_python: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    """Each is planted in a copy of phibuild, whose witness hears a checkpoint with an older save
    beside it, whole and cut down."""
    source = tmp_path / "source"
    shutil.copytree(checkpoint("phi3", vocab_size=70_000, layers=3), source)
    older = checkpoint("phi3", vocab_size=70_000, layers=3, seed=1, shards=2)
    for path in older.glob("model*"):
        shutil.copyfile(path, source / path.name)
    arch = load_checkpoint(source, "x", "x").architecture
    python = toolchain_python("pytorch")
    for number, (what, (name, right, wrong)) in enumerate(PLANTED.items()):
        package = tmp_path / f"package-{number}"
        shutil.copytree(ROOT / "phibuild", package / "phibuild", ignore=_not_code)
        path = package / "phibuild" / name
        text = path.read_text(encoding="utf-8")
        assert text.count(right) == 1, what
        path.write_text(text.replace(right, wrong), encoding="utf-8")
        readings = [Reading(source, arch), Reading(source, arch, (0, 2))]
        whole, cut = _ask(python, readings, tmp_path / f"views-{number}", package)
        assert whole["event"] == "failed", what
        assert cut["event"] == "failed", what


def _not_code(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if name in ("data", "__pycache__")]
