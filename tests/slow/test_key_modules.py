"""Keys hold all that runs: what real runners of every kind have imported when they end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from phibuild.backends.registry import SHIPPED
from phibuild.checkpoints.facts import load_checkpoint
from phibuild.planning.code import KINDS, PACKAGE, entries, runner_code
from phibuild.planning.steps import REFERENCE_BACKEND
from phibuild.store.store import Store
from phibuild.worker.unfused import places
from support import imported
from support.adapters import lora, make_adapter

RUN = """
import sys
from pathlib import Path
from phibuild.cli import main
from phibuild.execute.runner import process
process.WORKER = Path(sys.argv[1])
sys.exit(main(sys.argv[2:]))
"""
QUICK = ("evaluation.windows=2", "evaluation.window_tokens=64", "evaluation.decode_tokens=4")
RECIPE = """\
devices:
  raspberry_pi_5: {llamacpp: [int4, fp32], litert: [int4, fp32], executorch: [int4, fp32]}
  ai_pc_intel: {ort_genai: [int4, fp32], openvino: [int4, fp32]}
  mac: {mlx: [int4, fp32]}
  ai_pc_rtx: {pytorch: [int4, fp32]}
  intel_n100: {llamacpp: {int4: {type: Q4_0, imatrix: embedded}}}
  iphone: {mlx: {int4: {method: gptq, tokens: 1024}}, coreai: [int4]}
  copilot_pc_snapdragon: {qnn: {int4: {context: 128}}}
  jetson_orin_nano: {llamacpp: {int4: {target_kl: 0.02}}}
"""
VERBS = {"measure": "judge"}
"""Kinds of steps whose verb is another word."""


def test_all_that_a_runner_has_imported_is_in_the_key_of_its_step(
    tmp_path: Path,
    checkpoint: Callable[..., Path],
    toolchain_python: Callable[[str], Path],
    every: bool,
) -> None:
    for backend in SHIPPED:
        toolchain_python(backend)
    (tmp_path / "imported").mkdir()
    (tmp_path / "recipes").mkdir()
    recipe = RECIPE if every else RECIPE.replace(", fp32]", "]")  # int4 has most to import
    (tmp_path / "recipes" / "mine.yaml").write_text(recipe, encoding="utf-8")
    base = checkpoint("phi4mini")
    known = load_checkpoint(base, "base", "base").architecture
    make_adapter(tmp_path / "lora", lora(places(known), "down_proj"))
    model = f"model={{base: {base}, adapter: ./lora}}"
    merged = (model, "backend=llamacpp", "precision=int4", "evaluation=none", "gates.kl=null")
    for words in (("recipe=mine",), merged):
        done = subprocess.run(
            [sys.executable, "-c", RUN, imported.__file__, "build", *words, *QUICK],
            cwd=tmp_path,
            env={
                **os.environ,
                "PHIBUILD_STORE": str(tmp_path / "store"),
                "PHIBUILD_IMPORTED": str(tmp_path / "imported"),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    found = [json.loads(path.read_text()) for path in (tmp_path / "imported").iterdir()]
    ran = {(one["verb"], one["backend"]) for one in found}
    code = runner_code(Store(tmp_path / "store"), {"phibuild": PACKAGE})
    for kind in KINDS:
        backends = SHIPPED if kind in ("build", "measure") else (REFERENCE_BACKEND,)
        for backend in backends:
            verb = VERBS.get(kind, kind)
            assert (verb, backend) in ran
            held = {entry.partition(":")[0] for entry in code.reached(entries(kind, backend))}
            for one in found:
                if (one["verb"], one["backend"]) == (verb, backend):
                    assert f"phibuild.backends.{backend}.worker" in one["modules"]
                    assert set(one["modules"]) - held == set(), (kind, backend)
            ran.discard((verb, backend))
    assert ran == set()
