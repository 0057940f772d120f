"""Artifacts that hold fewer tokens than a window of the text are judged by its first tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from conftest import CommandLine

RECIPE = """\
devices:
  raspberry_pi_5: {litert: [fp32], executorch: [fp32], ort_genai: [fp32]}
evaluation: {windows: 2, window_tokens: 160, decode_tokens: 8}
gates: {kl: 0.000001}
"""


def test_a_short_context_is_judged_as_far_as_it_goes(
    checkpoint: Callable[..., Path], phibuild: CommandLine
) -> None:
    (phibuild.folder / "recipes").mkdir()
    (phibuild.folder / "recipes" / "mine.yaml").write_text(RECIPE, encoding="utf-8")
    positions = {"max_position_embeddings": 128, "original_max_position_embeddings": 128}
    source = checkpoint("phi4", layers=1, **positions)
    done = phibuild("build", "recipe=mine", f"model={source}")
    assert done.returncode == 0, done.stdout + done.stderr
    cells = phibuild.report("mine")["cells"]
    assert len(cells) == 3
    for cell in cells:
        assert cell["quality"]["tokens"] == 2 * 128, cell["id"]
        assert "judged by the first 128 tokens of each window: it holds no more" in cell["notes"]
