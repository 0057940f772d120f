"""A window of attention that is smaller than the model's context: what each runtime makes of it.

The original is Transformers' own attention with its sliding window. Up to the window all agree;
beyond it llama.cpp and mlx-lm have none, as the plan says, and the others are right.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import CommandLine

WINDOW = 32
LIMITED = {"llamacpp", "mlx"}
RECIPE = """\
devices:
  raspberry_pi_5: {llamacpp: [fp32]}
  mac: {mlx: [fp32]}
  ai_pc_intel: {openvino: [fp32], ort_genai: [fp32]}
  ai_pc_rtx: {pytorch: [fp32], ort_genai: {fp16: {provider: cuda}, int4: {provider: trt_rtx}}}
"""


@pytest.fixture
def build(
    phibuild: CommandLine, checkpoint: Callable[..., Path]
) -> Callable[..., dict[str, dict[str, Any]]]:
    """Return (tokens, words) -> cells by backend and precision, judged over such windows."""
    source = checkpoint(
        "phi3", layers=1, seed=3, sliding_window=WINDOW, rope_scaling=None,
        max_position_embeddings=4096, original_max_position_embeddings=4096,
    )  # fmt: skip
    recipes = phibuild.folder / "recipes"
    recipes.mkdir()
    (recipes / "mine.yaml").write_text(RECIPE, encoding="utf-8")

    def make(tokens: int, *words: str) -> dict[str, dict[str, Any]]:
        done = phibuild(
            "build", "-m", "recipe=mine", f"model={source}", *words, "evaluation.windows=1",
            f"evaluation.window_tokens={tokens}", f"evaluation.decode_tokens={tokens // 2}",
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        cells = phibuild.report("mine")["cells"]
        return {f"{cell['backend']}.{cell['precision']}": cell for cell in cells}

    return make


@pytest.mark.case(
    "running",
    "a sliding window: Phi-3-mini-4k, Phi-3-medium-4k",
    "llama.cpp, MLX: another model beyond it",
    "right in ONNX, OpenVINO, PyTorch; plan, report and card say where the others end",
)
@pytest.mark.case(
    "running",
    "ONNX external data with several hard links",
    "onnx refuses it",
    "copied into the run's folder; onnx opens it",
)
def test_windows_in_every_runtime(
    build: Callable[..., dict[str, dict[str, Any]]],
    phibuild: CommandLine,
    toolchain_python: Callable[[str], Path],
) -> None:
    limits = {"fp32": 1e-9, "fp16": 1e-5, "int4": 0.1}
    within = build(WINDOW, f"backend={','.join(sorted(LIMITED))}")
    for name, cell in within.items():
        assert cell["quality"]["kl_mean"] < limits[cell["precision"]], name
    for name, cell in build(3 * WINDOW).items():
        kl = cell["quality"]["kl_mean"]
        if cell["backend"] in LIMITED:
            assert kl > 1e-3, name
            assert cell["notes"][0].startswith(f"right up to {WINDOW} of 4,096 tokens: "), name
        else:
            assert kl < limits[cell["precision"]], name
            assert not any("right up to" in note for note in cell["notes"]), name
    run = phibuild.folder / "outputs" / "mine" / "latest"
    text = (run / "report.md").read_text(encoding="utf-8")
    assert f"right up to {WINDOW} of 4,096 tokens" in text
    readme = next(run.glob("artifacts/mac/*mlx*/README.md")).read_text(encoding="utf-8")
    assert f"Up to {WINDOW} tokens: " in readme
    _check_onnx(run, toolchain_python("ort_genai"))
    assert phibuild("verify").returncode == 0


def _check_onnx(run: Path, python: Path) -> None:
    """onnx itself opens what runs hold, with the data beside the graph; the store's has one link,
    too, so that it can be opened there."""
    graphs = sorted(run.glob("artifacts/*/*ort_genai*/model.onnx"))
    assert len(graphs) == 3
    program = (
        "import json, sys, onnx\n"
        "from onnx.external_data_helper import uses_external_data\n"
        "for name in sys.argv[1:]:\n"
        "    bare = onnx.load(name, load_external_data=False)\n"
        "    outside = sum(map(uses_external_data, bare.graph.initializer))\n"
        "    whole = onnx.load(name)\n"
        "    inside = sum(not uses_external_data(t) for t in whole.graph.initializer)\n"
        "    print(json.dumps([outside, inside, len(whole.graph.initializer)]))\n"
    )
    store = [
        path / "model.onnx"
        for path in (run.parents[2] / "store" / "artifacts").iterdir()
        if (path / "model.onnx").exists()
    ]
    done = subprocess.run(
        [str(python), "-c", program, *map(str, [*graphs, *store])],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    for line in done.stdout.splitlines():
        outside, inside, total = json.loads(line)
        assert outside > 0
        assert inside == total
    shutil.copytree(graphs[0].parent, run / "linked", copy_function=os.link)
    refused = subprocess.run(
        [str(python), "-c", program, str(run / "linked" / "model.onnx")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert refused.returncode != 0
    assert "hard link" in refused.stderr, refused.stderr[-2000:]
    shutil.rmtree(run / "linked")
