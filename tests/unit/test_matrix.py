"""Recipes to cells: restrictions, options and who has the last word, skips, sharing, globs, ids."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from phibuild.config.catalogue import Catalogue
from phibuild.config.compose import compose_build
from phibuild.errors import ConfigError, PhibuildError
from phibuild.planning.matrix import Matrix, expand
from phibuild.schema import PRECISIONS
from support.quickstart import QUICKSTART


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def recipe(folder: Path, text: str, name: str = "mine") -> None:
    write(folder / "recipes" / f"{name}.yaml", text)


def matrix(
    *words: str, sweep: bool = False, only: tuple[str, ...] = (), skip: tuple[str, ...] = ()
) -> Matrix:
    catalogue = Catalogue()
    return expand(compose_build(words, catalogue, sweep=sweep), catalogue, only=only, skip=skip)


def ids(found: Matrix) -> list[str]:
    return [cell.id for cell in found.cells]


def error(*words: str, sweep: bool = False, only: tuple[str, ...] = ()) -> str:
    with pytest.raises(PhibuildError) as caught:
        matrix(*words, sweep=sweep, only=only)
    return str(caught.value)


def option(found: Matrix, cell_id: str) -> str:
    (cell,) = (cell for cell in found.cells if cell.id == cell_id)
    assert cell.variant is not None, cell.skip
    return cell.variant.name


def test_the_quickstart_has_every_backend_at_every_precision() -> None:
    found = matrix()
    assert all(cell.skip is None for cell in found.cells)
    assert sorted((cell.backend, cell.precision) for cell in found.cells) == sorted(
        itertools.product(QUICKSTART, PRECISIONS)
    )


def test_ids_are_stable() -> None:
    """They pick, and name folders, logs and rows: what stands here stands in people's scripts."""
    first = matrix("recipe=iot")
    assert ids(first)[:3] == [
        f"{first.cells[0].model}.raspberry_pi_5.llamacpp.int4",
        f"{first.cells[0].model}.raspberry_pi_5.llamacpp.int8",
        f"{first.cells[0].model}.raspberry_pi_5.ort_genai.int4",
    ]
    assert ids(matrix("recipe=iot")) == ids(first)
    assert set(ids(matrix("recipe=iot", "gates.kl=9", "evaluation=none"))) == set(ids(first))


@pytest.mark.parametrize(
    ("word", "sweep", "count"),
    [("precision=int4", False, len(QUICKSTART)), ("precision=int4,int8", True, 2 * len(QUICKSTART)),
     ("backend=mlx", False, 4),
     ("device=ai_pc_intel", False, 8), ("device=mac,ai_pc_rtx", True, 8)],
)  # fmt: skip
def test_an_axis_restricts_what_the_recipe_names(word: str, sweep: bool, count: int) -> None:
    found = matrix(word, sweep=sweep)
    axis, values = word.split("=")
    assert len(found.cells) == count
    assert {getattr(cell, axis) for cell in found.cells} == set(values.split(","))


def test_axes_together() -> None:
    found = matrix("precision=int4,int8", "backend=openvino,mlx", sweep=True)
    assert [identifier.split(".", 1)[1] for identifier in ids(found)] == [
        "ai_pc_intel.openvino.int4", "ai_pc_intel.openvino.int8", "mac.mlx.int4", "mac.mlx.int8",
    ]  # fmt: skip


def test_a_name_that_the_recipe_has_not() -> None:
    assert "recipe iot has no backend 'mlx'" in error("recipe=iot", "backend=mlx")
    text = error("recipe=iot", "device=mac")
    assert "it has: raspberry_pi_5, raspberry_pi_5_4gb, raspberry_pi_4_4gb, " in text
    assert "command line: device=mac" in text


def test_models_are_an_axis() -> None:
    found = matrix("recipe=apple", "model=phi-4-mini,phi-4", sweep=True)
    assert set(found.models) == {"phi-4-mini", "phi-4"}
    assert {cell.model for cell in found.cells} == {"phi-4-mini", "phi-4"}
    assert len(found.cells) == 2 * len(matrix("recipe=apple").cells)


def test_who_has_the_last_word_on_an_option(folder: Path) -> None:
    """The backend's defaults, then the device's, the recipe's, the cell's."""
    devices = "devices: {raspberry_pi_5: {llamacpp: [int4]}, intel_n100: {llamacpp: [int4]}}\n"
    pi, nuc = (f"phi3-tiny-trained.{name}.llamacpp.int4" for name in ("raspberry_pi_5",
                                                                       "intel_n100"))  # fmt: skip
    recipe(folder, devices)
    found = matrix("recipe=mine")
    assert (option(found, pi), option(found, nuc)) == ("Q4_0", "Q4_K_M")  # device, backend

    wide = devices + "backends: {llamacpp: {int4: {type: Q5_K_M}}}\n"
    recipe(folder, wide)
    found = matrix("recipe=mine")
    assert (option(found, pi), option(found, nuc)) == ("Q5_K_M", "Q5_K_M")

    recipe(folder, wide.replace("{llamacpp: [int4]}", "{llamacpp: {int4: {type: IQ4_XS}}}", 1))
    found = matrix("recipe=mine")
    assert (option(found, pi), option(found, nuc)) == ("IQ4_XS", "Q5_K_M")

    write(folder / "conf" / "backend" / "llamacpp.yaml", "int4: {type: Q5_K_M}\n")
    recipe(folder, devices)
    found = matrix("recipe=mine")
    assert (option(found, pi), option(found, nuc)) == ("Q4_0", "Q5_K_M")


def test_options_are_merged_one_by_one(folder: Path) -> None:
    recipe(
        folder,
        "devices: {mac: {mlx: {int4: {group_size: 32}}}}\n"
        "backends: {mlx: {int4: {bits: 5, group_size: 128}}}\n",
    )
    (cell,) = matrix("recipe=mine").cells
    assert cell.variant is not None
    assert (cell.variant.options["bits"], cell.variant.options["group_size"]) == (5, 32)


@pytest.mark.parametrize(
    ("device", "backend", "cell", "reason"),
    [
        ("ai_pc_intel", "ort_genai", "fp16: {provider: cpu}", "cpu"),
        ("ai_pc_rtx", "ort_genai", "int8: {provider: trt_rtx}", "no int8"),
        ("raspberry_pi_5", "ort_genai", "int4: {provider: cuda}", "cuda"),
        ("copilot_pc_intel", "openvino", "int4: {mode: int4_asym, target: npu}", "npu"),
    ],
)
def test_what_cannot_work_is_a_skip_with_a_reason(
    folder: Path, device: str, backend: str, cell: str, reason: str
) -> None:
    recipe(folder, f"devices: {{{device}: {{{backend}: {{{cell}}}}}, mac: {{mlx: [int4]}}}}\n")
    one, two = matrix("recipe=mine").cells
    assert one.variant is None
    assert reason.lower() in (one.skip or "").lower()
    assert two.skip is None


def test_cells_that_need_the_same_variant_share_it(folder: Path) -> None:
    recipe(
        folder,
        "devices:\n  intel_n100: {llamacpp: [int4]}\n  ai_pc_intel: {llamacpp: [int4]}\n"
        "  raspberry_pi_5: {llamacpp: [int4]}\n",
    )
    first, second, pi = matrix("recipe=mine").cells
    assert first.variant == second.variant
    assert pi.variant != first.variant  # Q4_0 for Arm


@pytest.mark.parametrize(
    ("only", "skip", "left"),
    [
        (("*.mlx.*",), (), 4),
        (("*.int4", "*.int8"), (), 2 * len(QUICKSTART)),
        ((), ("*.fp??",), 2 * len(QUICKSTART)),
        (("*.openvino.*",), ("*.int4",), 3),
        (("*.mlx.int[48]",), (), 2),
        (("phi3-tiny-trained.mac.mlx.int4",), (), 1),
    ],
)
def test_only_and_skip(only: tuple[str, ...], skip: tuple[str, ...], left: int) -> None:
    assert len(matrix(only=only, skip=skip).cells) == left


def test_a_glob_that_matches_nothing() -> None:
    assert "no cell matches '*.mxl.*'" in error(only=("*.mxl.*",))


def test_nothing_left() -> None:
    with pytest.raises(ConfigError, match="nothing is left"):
        matrix(only=("*.mlx.*",), skip=("*.mac.*",))


def test_models_that_no_chosen_cell_needs_are_left_out() -> None:
    found = matrix("recipe=apple", "model=phi-4-mini,phi-4", sweep=True, only=("phi-4.*",))
    assert set(found.models) == {"phi-4"}


def test_two_recipes_are_one_matrix(folder: Path) -> None:
    one = "devices: {mac: {mlx: [int4]}, iphone: {mlx: [int4]}}\n"
    recipe(folder, one, "one")
    recipe(folder, "devices: {mac: {mlx: [int4, int8]}}\n", "two")
    assert len(matrix("recipe=one,two", sweep=True).cells) == 3


def test_two_recipes_that_differ_on_a_cell(folder: Path) -> None:
    recipe(folder, "devices: {mac: {mlx: [int4]}}\n", "one")
    recipe(folder, "devices: {mac: {mlx: {int4: {group_size: 32}}}}\n", "two")
    text = error("recipe=one,two", sweep=True)
    assert "build phi3-tiny-trained.mac.mlx.int4 differently" in text


def test_two_models_of_one_name(tmp_path: Path, checkpoint: object) -> None:
    import shutil

    assert callable(checkpoint)
    for name in ("a", "b"):
        shutil.copytree(checkpoint("phi3"), tmp_path / name / "phi")
    text = error(f"model={tmp_path}/a/phi,{tmp_path}/b/phi", sweep=True)
    assert "would both be called 'phi'" in text


def test_gates_are_the_recipes(folder: Path) -> None:
    recipe(folder, "devices: {mac: {mlx: [int4]}}\ngates: {kl: {int4: 0.5}, size: 3 MB}\n")
    (cell,) = matrix("recipe=mine").cells
    assert cell.gates.kl == {"int4": 0.5}
    assert cell.gates.size == 3_000_000
