"""Fine-tunes as people have them, through the command line: LoRA adapters, llama-fied checkpoints
and separate projections become artifacts, and the original is Transformers' own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import ROOT, CommandLine
from phibuild.worker.safetensors import read_checkpoint
from support.kinds import some
from support.originals import ask_transformers, build_whole
from support.quickstart import QUICKSTART

pytestmark = [pytest.mark.slow, pytest.mark.cold]

LORA: dict[str, Any] = {
    "target_modules": "all-linear", "r": 8, "lora_alpha": 16, "use_rslora": True,
    "modules_to_save": ["lm_head"],
}  # fmt: skip
# All backends build from the same fused weights.
FUSED = "backend=llamacpp,pytorch"
PLAIN = {"rope_scaling": None, "sliding_window": None, "max_position_embeddings": 4096}


@dataclass(frozen=True)
class Made:
    """Folders that the vendors' programs wrote, and the bases that they started from."""

    bases: dict[str, Path]
    folder: Path

    def copy(self, name: str, target: Path, base: str) -> Path:
        """Copy a folder and put the files of its base beside it that Transformers' save_pretrained
        of a model leaves out: the tokenizer's."""
        shutil.copytree(self.folder / name, target)
        for path in self.bases[base].iterdir():
            if not path.name.startswith("model") and not (target / path.name).exists():
                shutil.copyfile(path, target / path.name)
        return target


@pytest.fixture(scope="module")
def made(
    checkpoint: Callable[..., Path],
    vendor_python: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Made:
    folder = tmp_path_factory.mktemp("fine-tunes")
    bases = {
        "phi4mini": checkpoint("phi4mini"),
        "phi4": checkpoint("phi4"),
        "phi3": checkpoint("phi3", **PLAIN),
    }
    base, lora = str(bases["phi4mini"]), str(folder / "lora")
    orders: list[tuple[str, dict[str, Any]]] = [
        (
            "adapter",
            {"base": base, "output": lora, "config": LORA, "dtype": "fp32", "save": {}, "seed": 1},
        ),
        ("merge", {"base": base, "adapter": lora, "output": str(folder / "merged")}),
    ]
    for source, kind in (("phi4", "llama"), ("phi3", "mistral"), ("phi4mini", "split")):
        output = str(folder / kind)
        orders.append(
            ("llama_fied", {"source": str(bases[source]), "output": output, "kind": kind})
        )
    done = subprocess.run(
        [vendor_python("peft"), "-P", ROOT / "tests" / "support" / "peft_vendor.py"],
        input=json.dumps(orders),
        capture_output=True, text=True, check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-6000:]
    return Made(bases, folder)


def _judged(cells: dict[str, dict[str, Any]]) -> None:
    for name, cell in cells.items():
        assert cell["status"] == "built", (name, cell["reason"])
        assert cell["quality"]["kl_mean"] < 1e-6, name


@pytest.mark.case(
    "fine-tunes",
    "a LoRA adapter on its base, or its folder alone",
    "PEFT merges it",
    "merged while streaming, bit for bit as PEFT's merge_and_unload saves it",
)
@pytest.mark.case(
    "fine-tunes",
    "modules_to_save: lm_head on a tied base",
    "untied",
    "untied in every format",
)
def test_an_adapter_on_its_base_is_what_peft_merges(
    made: Made,
    phibuild: CommandLine,
    toolchain_python: Callable[[str], Path],
) -> None:
    adapter = phibuild.folder / "lora"
    shutil.copytree(made.folder / "lora", adapter)
    model = f"{{base: {made.bases['phi4mini']}, adapter: ./lora, name: Kiosk}}"
    cells = build_whole(phibuild, model)
    _judged(cells)
    assert set(cells) == set(QUICKSTART)
    assert {cell["model"] for cell in cells.values()} == {"Kiosk"}

    merged = made.copy("merged", phibuild.folder / "merged", "phi4mini")
    assert ask_transformers(toolchain_python("pytorch"), merged, phibuild) == {
        "distance": pytest.approx(0, abs=1e-5),
        "tied": False,
    }
    run = (phibuild.folder / "outputs" / "quickstart" / "latest").resolve()
    theirs, ours = read_checkpoint(merged), read_checkpoint(run / cells["pytorch"]["artifact"])
    assert set(ours) == set(theirs)
    for name, info in theirs.items():
        data = info.path.read_bytes()[info.offset : info.offset + info.nbytes]
        wide = np.frombuffer(data, "<u2").astype("<u4") << 16  # bfloat16's upper half of float32
        found = ours[name]
        assert found.dtype == "F32"
        with found.path.open("rb") as file:
            file.seek(found.offset)
            assert file.read(found.nbytes) == wide.tobytes(), name

    # A folder that PEFT saved says itself what it was trained on: it is the same source.
    model = f"model={{path: {adapter}, name: Kiosk}}"
    again = json.loads(phibuild("plan", model, "precision=fp32", "--json").stdout)
    assert {cell["status"] for cell in again["cells"]} == {"cached"}
    assert len(again["cells"]) == len(cells)


@pytest.mark.parametrize(
    ("kind", "base"), some([("llama", "phi4"), ("mistral", "phi3")], [("mistral", "phi3")])
)
@pytest.mark.case(
    "fine-tunes",
    "a Phi saved as {kind}",
    "loaded as {kind}",
    "fused while reading, built as a Phi; the witness compares the logits",
)
def test_a_llama_fied_phi_is_built_as_phi(
    made: Made,
    phibuild: CommandLine,
    toolchain_python: Callable[[str], Path],
    kind: str,
    base: str,
) -> None:
    source = made.copy(kind, phibuild.folder / kind, base)
    written = json.loads((source / "config.json").read_text(encoding="utf-8"))
    assert written["model_type"] == kind
    _judged(build_whole(phibuild, str(source), FUSED))
    answer = ask_transformers(toolchain_python("pytorch"), source, phibuild)
    assert answer["distance"] <= 1e-5
    (notes,) = (model["notes"] for model in phibuild.report("quickstart")["models"])
    assert any(kind in note.lower() for note in notes), notes


@pytest.mark.case(
    "fine-tunes",
    "q, k, v, gate and up apart under a Phi-3 config.json",
    None,
    "fused while reading",
)
@pytest.mark.every  # fused as those of a Phi that is saved as another model
def test_separate_projections_under_a_phis_config_are_fused(
    made: Made,
    phibuild: CommandLine,
    toolchain_python: Callable[[str], Path],
) -> None:
    source = made.copy("split", phibuild.folder / "split", "phi4mini")
    _judged(build_whole(phibuild, str(source), FUSED))
    answer = ask_transformers(toolchain_python("pytorch"), made.bases["phi4mini"], phibuild)
    assert answer["distance"] <= 1e-5
