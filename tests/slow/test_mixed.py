"""Types of tensors: what each matrix loses against Transformers' own model, sizes and losses that
are asked for, and recipes that keep what was chosen."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import CommandLine
from phibuild.config.catalogue import DATA
from phibuild.planning.tensor_types import patterns
from support import warm
from support.kinds import some

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
MODEL = DATA / "phi3-tiny-trained"

LOSSES = """
import json, sys, tempfile
from pathlib import Path
from phibuild.worker.lean import import_lean
import_lean()
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from phibuild.backends.pytorch.gptq.scales import nearest
from phibuild.backends.pytorch.layerwise import LayerwisePhi3
from phibuild.backends.pytorch.sensitivity import measure
from phibuild.worker.architecture import Architecture
from phibuild.worker.grids import Grid

given = json.load(sys.stdin)
source, grid = Path(given["source"]), Grid.from_json(given["grid"])
model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
ids = torch.tensor(given["ids"])

def logits():
    return model(ids).logits.double().log_softmax(-1)

with torch.inference_mode(), tempfile.TemporaryDirectory() as room:
    layerwise = LayerwisePhi3(source, Architecture.from_json(given["architecture"]))
    ours = measure(layerwise, ids, None, grid, Path(room), lambda fraction: None)
    original, theirs = logits(), {}
    weights = dict(model.named_parameters())
    for name in ours:
        kept = weights[name].data.clone()
        weights[name].data.copy_(nearest(kept, grid))
        kl = (original.exp() * (original - logits())).sum(-1)
        theirs[name] = float(kl.mean()), float(kl.mean(1).std() / len(kl) ** 0.5)
        weights[name].data.copy_(kept)
    groups = weights["model.layers.0.mlp.down_proj.weight"].data.reshape(-1, grid.group_size)
    rounded = nearest(groups, grid)
    levels = max(len(group.unique()) for group in rounded[:500])
    low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    step = (high - low) / grid.top
    even = ((groups - low) / step).round() * step + low
print(json.dumps({"ours": ours, "theirs": theirs, "levels": levels,
                  "error": float((rounded - groups).square().mean()),
                  "even": float((even - groups).square().mean())}))
"""


# Untied and tied.
@pytest.mark.parametrize("shape", some(["phi3-tiny-trained", "phi4mini"], ["phi4mini"]))
def test_losses_are_those_of_transformers_own_model(
    shape: str, toolchain_python: Callable[[str], Path], checkpoint: Callable[..., Path]
) -> None:
    from phibuild.worker.architecture import read_architecture

    source = MODEL if shape == MODEL.name else checkpoint(shape)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    ids = [[(7 * row * row + 13 * column) % 900 + 3 for column in range(64)] for row in range(3)]
    request = {
        "source": str(source),
        "grid": {"bits": 4, "group_size": 32, "zero": "code", "scale": "F16"},
        "ids": ids,
        "architecture": read_architecture(config).to_json(),
    }
    words = (toolchain_python("pytorch"), "-c", LOSSES)
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = warm.run(words, input=json.dumps(request), env=environ)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    tied = config["tie_word_embeddings"]
    assert len(found["ours"]) == 4 * config["num_hidden_layers"] + (1 if tied else 2)
    for name, (kl, error) in found["theirs"].items():
        assert kl > 1e-6, name
        assert found["ours"][name] == pytest.approx([kl, error], rel=1e-3, abs=1e-7), name
    assert found["levels"] <= 16
    assert found["error"] < found["even"]  # a searched scale is better than the range's


@pytest.fixture
def work(
    phibuild: CommandLine, toolchain_python: Callable[[str], Path], shared_folder: Path
) -> CommandLine:
    """Return the command line, with one store for all tests: what the model's matrices lose is
    measured once."""
    store = shared_folder / "mixed-store"
    store.mkdir(exist_ok=True)
    (phibuild.folder / "store").symlink_to(store)
    for name in ("llamacpp", "openvino", "mlx", "ort_genai", "pytorch"):
        toolchain_python(name)
    (phibuild.folder / "recipes").mkdir()
    return phibuild


def built(work: CommandLine, cells: dict[str, tuple[str, Any]], *words: str) -> dict[str, Any]:
    """Build int4 of one backend for each device; return the cells of the report by device."""
    devices = {device: {name: {"int4": options}} for device, (name, options) in cells.items()}
    text = yaml.safe_dump({"devices": devices})
    (work.folder / "recipes" / "mine.yaml").write_text(text, encoding="utf-8")
    done = work("build", "recipe=mine", *(words or ["evaluation=quick"]))
    assert done.returncode == 0, done.stdout + done.stderr
    return {cell["device"]: cell for cell in work.report("mine")["cells"]}


# Uniform bits, and types of tensors for the same size.
SIZES = {
    "intel_n100": ("llamacpp", {"type": "Q5_K_M"}, 3.32),
    "ai_pc_intel": ("openvino", {"group_size": 32}, 3.754),
    "mac": ("mlx", {"bits": 5}, 3.2565),
    "ai_pc_rtx": ("pytorch", {"group_size": 32}, 4.24),
    "copilot_pc_snapdragon": (
        "ort_genai",
        {"int8_matmuls": ["last_matmul", "mixed_layers"]},
        22.841,
    ),
}


def test_a_size_is_met_and_loses_less_than_uniform_bits(work: CommandLine, every: bool) -> None:
    some = {
        device: one for device, one in SIZES.items() if every or one[0] in ("llamacpp", "ort_genai")
    }
    uniform = built(work, {device: (name, how) for device, (name, how, _) in some.items()})
    asked = {
        device: (
            name,
            {"target_size": f"{size} MB", **({"type": "Q4_K_M"} if "pp" in name else {})},
        )
        for device, (name, _, size) in some.items()
    }
    mixed = built(work, asked)
    for device, cell in mixed.items():
        target = SIZES[device][2] * 1e6
        assert 0.99 * target < cell["size_bytes"] <= target, device
        assert cell["size_bytes"] <= uniform[device]["size_bytes"], device
        assert cell["quality"]["kl_mean"] < uniform[device]["quality"]["kl_mean"], device
        assert len(set(cell["options"]["tensor_types"].values())) > 1, device
    (table,) = {one["tokens"] for one in work.report("mine")["sensitivities"]}
    assert table == 1024
    shown = work("report", "mine", "--sensitivity")
    assert shown.returncode == 0
    assert "in groups of 32, with zero points" in shown.stdout

    # What was chosen, written into the recipe, is the same artifact.
    kept = {
        device: (
            asked[device][0],
            {"tensor_types": patterns(cell["options"]["tensor_types"])}
            | ({"type": "Q4_K_M"} if device == "intel_n100" else {}),
        )
        for device, cell in mixed.items()
    }
    chosen = weights(work)
    again = built(work, kept, "evaluation=none")
    assert {cell["status"] for cell in again.values()} == {"built"}
    assert weights(work) == chosen
    card = next((work.folder / "outputs" / "mine" / "latest").rglob("README.md"))
    assert "tensor_types:" in card.read_text(encoding="utf-8")


def weights(work: CommandLine) -> dict[tuple[str, str], str]:
    """Return the sha256 of each file of weights of the newest run, by device."""
    run = work.folder / "outputs" / "mine" / "latest" / "artifacts"
    files = [
        path for path in run.rglob("*") if path.suffix in (".gguf", ".safetensors", ".bin", ".data")
    ]
    return {
        (path.relative_to(run).parts[0], path.suffix): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if "token" not in path.name
    }


def test_a_loss_is_kept_and_gptq_makes_it_smaller(work: CommandLine, every: bool) -> None:
    names = {"raspberry_pi_5": "llamacpp"}
    if every:
        names |= {"mac": "mlx", "ai_pc_intel": "openvino", "ai_pc_rtx": "pytorch",
                  "copilot_pc_snapdragon": "ort_genai"}  # fmt: skip
    plain = built(work, {device: (name, {"target_kl": 0.025}) for device, name in names.items()})
    options = {"target_kl": 0.025, "method": "gptq"}
    gptq = built(work, {device: (name, options) for device, name in names.items()})
    for device in names:
        for cell in (plain[device], gptq[device]):
            # Losses add up but roughly, and the judge's text is another.
            assert 0.012 < cell["quality"]["kl_mean"] < 0.034, (device, cell["variant"])
        assert gptq[device]["size_bytes"] < plain[device]["size_bytes"], device


def test_no_types_lose_so_little(work: CommandLine) -> None:
    (work.folder / "recipes" / "mine.yaml").write_text(
        "devices: {ai_pc_intel: {openvino: {int4: {target_kl: 0.000001}, int8: }}}\n", "utf-8"
    )
    done = work("build", "recipe=mine", "evaluation=none")
    assert done.returncode == 1, done.stdout + done.stderr
    cells = {cell["precision"]: cell for cell in work.report("mine")["cells"]}
    assert cells["int4"]["reason"] == "no choice of types keeps its target_kl"
    assert cells["int8"]["status"] == "built"
