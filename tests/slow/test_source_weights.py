"""Which weights and which configuration a checkpoint means: in every format what Transformers makes
of it, for checkpoints as people have them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from conftest import CommandLine
from phibuild.checkpoints.facts import load_checkpoint
from phibuild.worker.safetensors import read_header
from phibuild.worker.unfused import places
from support.adapters import lora, make_adapter
from support.checkpoints import tensor_values, to_bytes
from support.kinds import some
from support.originals import QUICK, ask_transformers, build_whole, edit_config, with_tensor
from support.quickstart import QUICKSTART

pytestmark = [pytest.mark.slow, pytest.mark.cold]

HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"


@pytest.mark.case(
    "weights",
    "tied flag, an own and different lm_head.weight",
    "not tied",
    "untied in every format",
)
@pytest.mark.case(
    "weights",
    "model.safetensors beside an index, shards and model_base.safetensors",
    "model.safetensors is loaded",
    "the same; plan and report say that the others are not read",
)
@pytest.mark.case(
    "config.json",
    "rope_scaling.type: su",
    None,
    "read as longrope, said in plan and report",
)
def test_a_head_of_its_own_older_saves_and_longropes_first_name(
    checkpoint: Callable[..., Path],
    phibuild: CommandLine,
    toolchain_python: Callable[[str], Path],
) -> None:
    """All in one checkpoint: a merged LoRA with a trained head (the flag still ties), `su`, and
    weights of other saves beside those that count."""
    source = phibuild.folder / "merged"
    shutil.copytree(checkpoint("phi4mini"), source)
    shape = read_header(source / "model.safetensors")[EMBEDDING].shape
    head = to_bytes(tensor_values(HEAD, shape, 7), "bf16")
    with_tensor(source, HEAD, head, shape, "BF16")
    for path in checkpoint("phi4mini", seed=1, shards=2).glob("model*"):
        shutil.copyfile(path, source / path.name)
    shutil.copyfile(source / "model-00001-of-00002.safetensors", source / "model_base.safetensors")
    scaling = json.loads((source / "config.json").read_text())["rope_scaling"]
    edit_config(source, rope_scaling={**scaling, "type": "su"})

    cells = build_whole(phibuild, str(source))
    assert set(cells) == set(QUICKSTART)
    edit_config(source, rope_scaling=scaling)  # Transformers 5.23 cannot load what says su
    whole = ask_transformers(toolchain_python("pytorch"), source, phibuild)
    assert whole["tied"] is False
    assert whole["distance"] <= 1e-5
    for name, cell in cells.items():
        assert cell["quality"]["kl_mean"] < 1e-6, name
    (notes,) = (model["notes"] for model in phibuild.report("quickstart")["models"])
    assert "lm_head of their own" in notes[0]
    assert "su is longrope's first name" in notes[1]
    assert "model-00001-of-00002.safetensors" in notes[2]


@pytest.mark.case(
    "config.json",
    "rope_scaling.attention_factor, or factor",
    "scales cos and sin",
    "kept in every format but MLX, whose runtime has no place for it: skipped",
)
@pytest.mark.case(
    "config.json",
    "longrope without original_max_position_embeddings",
    "4,096",
    "4,096",
)
def test_keys_that_change_longropes_scale(
    checkpoint: Callable[..., Path],
    phibuild: CommandLine,
    toolchain_python: Callable[[str], Path],
) -> None:
    """attention_factor inside rope_scaling, and original_max_position_embeddings missing: 4096."""
    source = phibuild.folder / "scaled"
    shutil.copytree(checkpoint("phi3"), source)
    scaling = json.loads((source / "config.json").read_text())["rope_scaling"]
    edit_config(
        source,
        rope_scaling={**scaling, "attention_factor": 1.05},
        original_max_position_embeddings=...,
    )
    cells = build_whole(phibuild, str(source))
    whole = ask_transformers(toolchain_python("pytorch"), source, phibuild)
    assert whole["distance"] <= 1e-5
    assert cells["mlx"]["status"] == "skipped"
    assert "attention_factor" in cells["mlx"]["reason"]
    for name, cell in cells.items():
        if name != "mlx":
            assert cell["quality"]["kl_mean"] < 1e-6, name


ROPES = """\
devices:
  ai_pc_intel: {ort_genai: {fp32: {provider: cpu}}}
  ai_pc_rtx: {ort_genai: {fp16: {provider: dml}}}
"""
"""Where ONNX graphs choose between longrope's tables, and where the tables are one."""


@pytest.mark.parametrize(
    ("shape", "maximum", "original"),
    some([("phi3", 512, 512), ("phi4", 512, 32)], [("phi3", 512, 512)]),
)
@pytest.mark.case(
    "config.json",
    "longrope up to its original positions; other original positions without longrope",
    "the type of rope says which factors there are",
    "the same; ONNX Runtime GenAI's builder, which goes by the lengths, is told",
)
def test_the_type_of_rope_counts_and_not_the_lengths(
    shape: str,
    maximum: int,
    original: int,
    checkpoint: Callable[..., Path],
    phibuild: CommandLine,
) -> None:
    """Windows of 48 tokens: of phi4 beyond an original length that nothing reads."""
    (phibuild.folder / "recipes").mkdir()
    (phibuild.folder / "recipes" / "ropes.yaml").write_text(ROPES, encoding="utf-8")
    source = checkpoint(
        shape,
        layers=1,
        max_position_embeddings=maximum,
        original_max_position_embeddings=original,
    )
    done = phibuild("build", "recipe=ropes", f"model={source}", *QUICK)
    assert done.returncode == 0, done.stdout + done.stderr
    cells = {cell["precision"]: cell for cell in phibuild.report("ropes")["cells"]}
    assert cells["fp32"]["quality"]["kl_mean"] < 1e-6
    assert cells["fp16"]["quality"]["kl_mean"] < 1e-3
    for cell in cells.values():
        assert cell["estimated_bytes"] == pytest.approx(cell["size_bytes"], abs=50_000)


@pytest.mark.case(
    "weights",
    "tied flag, an equal copy as lm_head.weight",
    None,
    "tied, the copy is not written",
)
def test_an_equal_copy_of_the_embedding_is_no_head(
    checkpoint: Callable[..., Path], phibuild: CommandLine
) -> None:
    source = phibuild.folder / "copied"
    shutil.copytree(checkpoint("phi4mini"), source)
    embedding = read_header(source / "model.safetensors")[EMBEDDING]
    data = embedding.path.read_bytes()[embedding.offset : embedding.offset + embedding.nbytes]
    with_tensor(source, HEAD, data, embedding.shape, "BF16")
    plan = json.loads(phibuild("plan", f"model={source}", "precision=fp32", "--json").stdout)
    tied = json.loads(
        phibuild("plan", f"model={checkpoint('phi4mini')}", "precision=fp32", "--json").stdout
    )
    sizes = [[cell["estimated_bytes"] for cell in found["cells"]] for found in (plan, tied)]
    assert sizes[0] == sizes[1]
    assert plan["models"][0]["notes"] == []


@pytest.mark.case(
    "weights",
    "NaN or infinity",
    None,
    "refused before anything is built, with tensor and position; with allow_nonfinite, floats "
    "hold it and integers fail",
)
def test_nan_in_a_weight_is_refused_for_all_formats_alike(
    checkpoint: Callable[..., Path], phibuild: CommandLine
) -> None:
    source = phibuild.folder / "nan"
    shutil.copytree(checkpoint("phi3"), source)
    tensor = read_header(source / "model.safetensors")["model.layers.2.mlp.down_proj.weight"]
    row, column = 5, 3
    with (source / "model.safetensors").open("r+b") as file:
        file.seek(tensor.offset + 2 * (row * tensor.shape[1] + column))
        file.write(b"\xc0\x7f")
    refused = phibuild("build", f"model={source}", "evaluation=none")
    assert refused.returncode == 2
    assert "model.layers.2.mlp.down_proj.weight holds NaN at [5, 3]" in refused.stderr
    assert "allow_nonfinite=true" in refused.stderr
    assert not (phibuild.folder / "outputs").exists()
    words = ("-m", "precision=fp32,int4", "evaluation=none", "allow_nonfinite=true")
    allowed = phibuild("build", f"model={source}", *words)
    assert allowed.returncode == 1, allowed.stderr
    cells = phibuild.report("quickstart")["cells"]
    assert {cell["status"] for cell in cells if cell["precision"] == "fp32"} == {"built"}
    assert {cell["status"] for cell in cells if cell["precision"] == "int4"} == {"failed"}

    # What is made of such weights holds them, too.
    known = load_checkpoint(source, "nan", "nan").architecture
    make_adapter(phibuild.folder / "lora", lora(places(known), "down_proj"))
    model = f"model={{base: {source}, adapter: ./lora}}"
    one = ("precision=fp32", "backend=pytorch", "evaluation=none")
    assert phibuild("build", model, *one).returncode == 2
    merged = phibuild("build", model, *one, "allow_nonfinite=true")
    assert merged.returncode == 0, merged.stderr


@pytest.mark.case(
    "weights",
    "a finite weight beyond fp16",
    None,
    "fp16 fails, naming the tensor",
)
def test_weights_beyond_fp16_fail_in_every_format(
    checkpoint: Callable[..., Path], phibuild: CommandLine
) -> None:
    source = phibuild.folder / "large"
    shutil.copytree(checkpoint("phi3"), source)
    tensor = read_header(source / "model.safetensors")["model.layers.1.mlp.down_proj.weight"]
    with (source / "model.safetensors").open("r+b") as file:
        file.seek(tensor.offset)
        file.write(np.array([0x4800], "<u2").tobytes())  # 2^17 in bfloat16
    done = phibuild("build", f"model={source}", "precision=fp16", "evaluation=none")
    assert done.returncode == 1, done.stderr
    cells = phibuild.report("quickstart")["cells"]
    assert {cell["status"] for cell in cells} == {"failed"}, cells
    assert len(cells) == len(QUICKSTART)
    for cell in cells:
        assert "down_proj" in cell["reason"] or "down_proj" in cell["reason"].replace("/", "."), (
            cell
        )
