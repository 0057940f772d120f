"""`quality: best`: what docs/variants.md shows to lose least, as if it were written out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import ROOT
from phibuild.backends.registry import SHIPPED, backend
from phibuild.config.catalogue import Catalogue
from phibuild.config.compose import compose_build
from phibuild.planning.matrix import expand
from phibuild.schema import Cell
from support.quickstart import devices_of
from support.refusals import Refuse, refuse

__all__ = ["refuse"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipes").mkdir()
    monkeypatch.chdir(tmp_path)


def cells(device: str, name: str, options: str, *words: str) -> tuple[Cell, ...]:
    text = f"devices: {{{device}: {{{name}: {{int4: {options}}}}}}}\n"
    Path("recipes/mine.yaml").write_text(text, encoding="utf-8")
    catalogue = Catalogue()
    return expand(compose_build(["recipe=mine", *words], catalogue, sweep=False), catalogue).cells


def name_of(device: str, name: str, options: str, *words: str) -> str | None:
    (cell,) = cells(device, name, options, *words)
    return cell.variant.name if cell.variant else cell.skip


@pytest.mark.parametrize("name", SHIPPED)
def test_it_is_the_least_loss_of_the_table(name: str) -> None:
    table = (ROOT / "docs" / "variants.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()
            if line.startswith(f"| {name} ")]  # fmt: skip
    losses = {row[2]: float(row[5].split()[0]) for row in rows if row[1] == "int4"}
    assert len(losses) > 4
    device = next(iter(devices_of(name)))
    assert name_of(device, name, "{quality: best}") == min(losses, key=losses.__getitem__)


@pytest.mark.parametrize(
    ("device", "name", "best", "written"),
    [
        ("raspberry_pi_5", "llamacpp", "", "type: Q5_K_M, method: gptq"),
        ("android_flagship", "llamacpp", "tokens: 4096, ",
         "type: Q4_0, method: gptq, tokens: 4096"),
        ("copilot_pc_intel", "openvino", "", "method: gptq"),  # the device's own: npu, sym, g128
        ("ai_pc_rtx", "ort_genai", "provider: cuda, ",
         "provider: cuda, method: gptq, int8_matmuls: [last_matmul, mixed_layers]"),
        ("ai_pc_rtx", "ort_genai", "provider: dml, ",
         "provider: dml, method: gptq, symmetric: false"),
        ("ai_pc_rtx", "ort_genai", "provider: trt_rtx, ", "provider: trt_rtx, symmetric: false"),
        ("mac", "mlx", "dtype: float32, ", "dtype: float32, bits: 5, method: gptq"),
        ("ai_pc_rtx", "pytorch", "", "group_size: 32, method: gptq"),
    ],
)  # fmt: skip
def test_it_is_as_if_it_were_written_out(device: str, name: str, best: str, written: str) -> None:
    (found,) = cells(device, name, f"{{{best}quality: best}}")
    (expected,) = cells(device, name, f"{{{written}}}")
    assert found == expected
    assert found.variant is not None
    assert "quality" not in found.variant.options
    assert found.variant.calibration == (expected.variant and expected.variant.calibration)


def test_a_model_that_cannot_have_the_best_has_the_next() -> None:
    """Tied embeddings: no last_matmul, and without symmetry no default algorithm."""
    words = ("model=phi-4-mini",)
    assert name_of("ai_pc_rtx", "ort_genai", "{quality: best}", *words) == (
        "int4-cuda-b32-mixed_layers-gptq"
    )
    assert name_of("ai_pc_rtx", "ort_genai", "{quality: best, provider: dml}", *words) == (
        "int4-dml-b32-gptq"
    )


def test_a_model_without_whole_blocks_has_no_k_quant_by_gptq(
    checkpoint: Callable[..., Path],
) -> None:
    words = (f"model={checkpoint('phi3', intermediate_size=288)}",)
    assert name_of("raspberry_pi_5", "llamacpp", "{quality: best}", *words) == "Q5_K_M-imatrix"
    assert name_of("mac", "llamacpp", "{method: gptq}", *words) == "Q4_0-gptq"
    with pytest.raises(Exception, match="rows of 288, which it stores in other types"):
        cells("mac", "llamacpp", "{method: gptq, type: Q4_K_M}", *words)


def test_a_device_that_can_have_none() -> None:
    with pytest.raises(Exception, match="MLX artifacts run on Apple GPUs"):
        cells("raspberry_pi_5", "mlx", "{quality: best}")


def test_it_has_the_last_word_over_what_lies_below() -> None:
    """The Pi's own type is Q4_0, and this one stands for the whole recipe."""
    word = "backends.llamacpp.int4={type: IQ4_XS, method: nearest}"
    assert name_of("raspberry_pi_5", "llamacpp", "{quality: best}", word) == "Q5_K_M-gptq"
    wide = "backends.llamacpp.int4.quality=best"
    assert name_of("raspberry_pi_5", "llamacpp", "", wide) == "Q5_K_M-gptq"
    assert name_of("raspberry_pi_5", "llamacpp", "{quality: null}", wide) == "Q4_K_M"


def test_the_same_written_out_is_the_same_variant(refuse: Refuse) -> None:
    refuse.write(
        "recipes/mine.yaml",
        "devices:\n  raspberry_pi_5:\n    llamacpp:\n      int4:\n        - quality: best\n"
        "        - {type: Q5_K_M, method: gptq}\n",
    )
    (error,) = refuse("plan", "recipe=mine")
    assert error.startswith("recipes/mine.yaml:6: int4: two variants are the same, Q5_K_M-gptq")


CASES = [
    ("raspberry_pi_5", "llamacpp", "int4", "type: Q4_0", "quality best chooses type itself"),
    ("raspberry_pi_5", "llamacpp", "int4", "method: gptq", "quality best chooses method itself"),
    ("raspberry_pi_5", "llamacpp", "int4", "target_size: 3 MB",
     "quality best chooses target_size itself"),
    ("mac", "mlx", "int4", "group_size: 32", "quality best chooses group_size itself"),
    ("mac", "mlx", "int4", "recipe: mixed_4_6", "quality best chooses recipe itself"),
    ("ai_pc_rtx", "ort_genai", "int4", "symmetric: true", "quality best chooses symmetric itself"),
    ("ai_pc_rtx", "pytorch", "int4", "group_size: 128", "quality best chooses group_size itself"),
    ("ai_pc_intel", "openvino", "int4", "mode: int4_sym", "quality best chooses mode itself"),
]  # fmt: skip


@pytest.mark.parametrize(("device", "name", "precision", "option", "what"), CASES)
@pytest.mark.case(
    "building",
    "an option beside `quality: best` that it chooses itself",
    "-",
    "an error with file and line, exit code 2",
)
def test_what_it_chooses_cannot_stand_beside_it(
    device: str, name: str, precision: str, option: str, what: str, refuse: Refuse
) -> None:
    refuse.write(
        "recipes/mine.yaml",
        f"devices:\n  {device}:\n    {name}:\n      {precision}:\n        quality: best\n"
        f"        {option}\n",
    )
    for verb in refuse.verbs:
        (error,) = refuse(verb, "recipe=mine")
        key = option.partition(":")[0]
        assert error.startswith(f"recipes/mine.yaml:6: option {key!r} of {name}: {what}")
        assert f"remove {key}" in error


def test_it_is_int4s(refuse: Refuse) -> None:
    for name in SHIPPED:
        text = f"devices: {{ai_pc_rtx: {{{name}: {{int8: {{quality: best}}}}}}}}\n"
        refuse.write("recipes/mine.yaml", text)
        (error,) = refuse("plan", "recipe=mine")
        assert f"option 'quality' of {name}: quality best chooses among the variants of" in error
    refuse.write("recipes/mine.yaml", "devices: {mac: {mlx: {int4: {quality: good}}}}\n")
    (error,) = refuse("plan", "recipe=mine")
    assert error.startswith("recipes/mine.yaml:1: option 'quality' of mlx: must be 'best'")


@pytest.mark.parametrize("name", SHIPPED)
def test_the_choices_contradict_nothing(name: str) -> None:
    spec = backend(name)
    assert spec.best
    for choice in spec.best:
        assert spec.contradiction("int4", spec.options.model_validate(choice.options)) is None
