"""Plans: what shares a key, what changes it, what is cached, what it takes; and a large one."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from phibuild.backends.llamacpp.matrix import ImportanceMatrix, encode_matrix
from phibuild.backends.registry import SHIPPED, backend
from phibuild.commands.plan import plan_lines
from phibuild.commands.plan_answer import plan_answer
from phibuild.planning.readme import artifact_readme
from phibuild.report.notes import cell_notes
from phibuild.schema import PRECISIONS
from support.devices import SOURCES
from support.matrices import make_matrix
from support.planner import RECIPE, Planner, plan

__all__ = ["plan"]  # fixtures

PI, NUC, PC = (f"{name}.llamacpp.int4" for name in ("raspberry_pi_5", "intel_n100", "ai_pc_intel"))


def test_cells_share_a_key_when_they_need_the_same(plan: Planner) -> None:
    keys = plan.keys()
    assert keys[NUC] == keys[PC]
    assert len(set(keys.values())) == 4
    (shared,) = (artifact for artifact in plan().artifacts if len(artifact.cells) > 1)
    assert [name.split(".", 1)[1] for name in shared.cells] == [NUC, PC]


def test_steps_are_one_pass_for_each_backend(plan: Planner) -> None:
    found = plan()
    assert [step.id for step in found.steps] == [
        "source.phi3-tiny-trained",
        "reference.phi3-tiny-trained",
        "build.phi3-tiny-trained.llamacpp",
        "build.phi3-tiny-trained.openvino",
        "measure.phi3-tiny-trained.llamacpp",
        "measure.phi3-tiny-trained.openvino",
    ]
    assert [len(step.artifacts) for step in found.builds] == [3, 1]
    assert set(found.toolchains) == {"llamacpp", "openvino", "pytorch"}
    assert all(step.memory_bytes > 0 for step in found.steps)


def test_without_judging(plan: Planner) -> None:
    found = plan("evaluation=none")
    assert (found.measures, found.references) == ((), ())
    assert found.toolchains == ("llamacpp", "openvino", "pytorch")  # the last reads the source
    assert all(artifact.measure_key is None for artifact in found.artifacts)


def test_a_key_does_not_depend_on_the_run(plan: Planner) -> None:
    keys = plan.keys()
    assert plan.keys() == keys
    assert plan.keys("evaluation=quick", "gates.kl=1", "executor.cores=1") == keys
    plan.recipe(RECIPE.replace("ai_pc_intel", "ai_pc_rtx"))  # another device, the same variant
    assert plan.keys()["ai_pc_rtx.llamacpp.int4"] == keys[PC]


def test_editing_one_cell_changes_that_one_alone(plan: Planner) -> None:
    before = plan.keys()
    plan.recipe(RECIPE.replace("ai_pc_intel: {llamacpp: [int4]}",
                               "ai_pc_intel: {llamacpp: {int4: {type: Q5_K_M}}}"))  # fmt: skip
    after = plan.keys()
    assert {cell for cell in before if before[cell] != after[cell]} == {PC}


def test_another_name_or_source_changes_every_key(
    plan: Planner, checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    keys = []
    for number, (name, seed) in enumerate([("a", 0), ("b", 0), ("a", 1)]):
        folder = tmp_path / str(number) / name
        shutil.copytree(checkpoint("phi3", seed=seed), folder)
        keys.append(plan.keys(f"model={folder}"))
    for one, two in [(0, 1), (0, 2), (1, 2)]:
        assert not set(keys[one].values()) & set(keys[two].values())
    copy = tmp_path / "again" / "a"
    shutil.copytree(tmp_path / "0" / "a", copy)
    assert plan.keys(f"model={copy}") == keys[0]  # where it lies does not matter
    tokenizer = copy / "tokenizer_config.json"
    tokenizer.write_text(tokenizer.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert not set(plan.keys(f"model={copy}").values()) & set(keys[0].values())


def test_what_is_in_the_store_is_cached(plan: Planner) -> None:
    first = plan()
    assert not any(artifact.cached or artifact.judged for artifact in first.artifacts)
    plan.build(first)
    second = plan()
    assert all(artifact.cached and not artifact.judged for artifact in second.artifacts)
    assert [step.id.split(".")[0] for step in second.steps] == [
        "source",
        "reference",
        "measure",
        "measure",
    ]
    assert second.disk_bytes == 0
    plan.judge(second)
    third = plan()
    assert third.steps == ()
    assert third.toolchains == ()
    assert third.peak_build_memory == 0


def test_an_edited_cell_is_the_only_work(plan: Planner) -> None:
    first = plan()
    plan.build(first)
    plan.judge(first)
    plan.recipe(RECIPE.replace("raspberry_pi_5: {llamacpp: [int4]}",
                               "raspberry_pi_5: {llamacpp: {int4: {type: IQ4_XS}}}"))  # fmt: skip
    found = plan()
    (step,) = found.builds
    assert [name.split(".", 1)[1] for a in step.artifacts for name in a.cells] == [PI]
    assert [len(measure.artifacts) for measure in found.measures] == [1]
    assert found.disk_bytes == step.artifacts[0].estimate.artifact_bytes


def test_another_judging_keeps_the_artifacts(plan: Planner, tmp_path: Path) -> None:
    first = plan()
    plan.build(first)
    plan.judge(first)
    text = tmp_path / "text.txt"
    text.write_text("another text\n" * 500, encoding="utf-8")
    for word in ("evaluation=quick", "evaluation.windows=3", f"evaluation.text={text}"):
        found = plan(word)
        assert found.builds == ()
        assert [len(step.artifacts) for step in found.measures] == [3, 1], word
    digits = plan(f"evaluation.text={text}").references[0].key
    text.write_text("one more\n" * 500, encoding="utf-8")
    assert plan(f"evaluation.text={text}").references[0].key != digits


IMATRIX = """\
devices:
  intel_n100: {llamacpp: {int4: {imatrix: TEXT}, int8: }, openvino: [int4]}
  raspberry_pi_5: {llamacpp: {int4: {imatrix: TEXT, type: Q4_0}}}
  ai_pc_intel: {llamacpp: {int4: {imatrix: TEXT, imatrix_tokens: 1024}}}
"""


def test_activations_are_a_step_that_variants_share(plan: Planner) -> None:
    plan.recipe(IMATRIX.replace("TEXT", "embedded"))
    found = plan("evaluation=none")
    long, short = found.calibrations  # 16,384 tokens for two variants, 1,024 for one
    assert [step.id for step in found.steps] == [
        "source.phi3-tiny-trained",
        long.id,
        short.id,
        "build.phi3-tiny-trained.llamacpp",
        "build.phi3-tiny-trained.openvino",
    ]
    assert long.id == f"activations.phi3-tiny-trained.{long.key[:8]}"
    assert (long.calibration.tokens, short.calibration.tokens) == (16384, 1024)
    needs = [artifact.activations for artifact in found.builds[0].artifacts]
    assert sorted(needs, key=str) == sorted([None, long.key, long.key, short.key], key=str)
    assert found.toolchains == ("llamacpp", "openvino", "pytorch")
    assert long.memory_bytes > short.memory_bytes > 0


def test_activations_that_nothing_needs_are_not_planned(plan: Planner) -> None:
    plan.recipe(IMATRIX.replace("TEXT", "embedded"))
    first = plan("evaluation=none")
    with plan.prepared().workspace() as folder:
        (folder / "meta.json").write_text("{}", encoding="utf-8")
        plan.store.publish_reference(first.calibrations[0].key, folder)
    second = plan("evaluation=none")
    assert [step.cached for step in second.calibrations] == [True, False]
    assert second.steps[:2] == (second.sources[0], first.calibrations[1])
    plan.build(second)
    third = plan("evaluation=none")
    assert (third.calibrations, third.steps) == ((), ())


def test_keys_depend_on_a_calibration_text_and_not_on_its_place(plan: Planner) -> None:
    def keys(name: str, text: str) -> set[str]:
        (plan.folder / name).write_text(text, encoding="utf-8")
        plan.recipe(IMATRIX.replace("TEXT", name))
        found = plan("evaluation=none")
        return {step.key for step in found.calibrations} | {a.key for a in found.artifacts}

    one = keys("one.txt", "a text")
    assert len(one) == 2 + 5
    assert keys("moved.txt", "a text") == one
    assert len(keys("one.txt", "another text") & one) == 2  # int8 and openvino


def test_a_file_of_an_importance_matrix_is_in_the_key_by_content_and_name(plan: Planner) -> None:
    def keys(name: str, matrix: ImportanceMatrix) -> set[str]:
        (plan.folder / name).parent.mkdir(exist_ok=True)
        (plan.folder / name).write_bytes(encode_matrix(matrix))
        plan.recipe(IMATRIX.replace("TEXT", name).replace(", imatrix_tokens: 1024", ""))
        found = plan("evaluation=none")
        assert found.calibrations == ()
        return {artifact.key for artifact in found.artifacts}

    matrix = make_matrix()
    one = keys("one.gguf", matrix)
    assert len(one) == 4
    assert keys("moved/one.gguf", matrix) == one
    for other in (keys("two.gguf", matrix), keys("one.gguf", replace(matrix, chunks=3))):
        assert len(other & one) == 2  # int8 and openvino


def test_a_checkpoint_that_was_never_hashed_counts_as_not_cached(plan: Planner) -> None:
    assert plan(hashed=False).source_digests == {}
    plan.prepared()
    plan.build(plan())
    found = plan(hashed=False)  # remembered now
    assert all(artifact.cached for artifact in found.artifacts)


def test_planning_writes_nothing(plan: Planner) -> None:
    plan(hashed=False)
    assert not plan.store.root.exists()


def test_skipped_cells_have_no_artifact(plan: Planner) -> None:
    plan.recipe("devices: {mac: {mlx: [int4]}, ai_pc_intel: {ort_genai: {fp16: {provider: cpu}}}}")
    one, two = plan().cells
    assert one.artifact is not None
    assert (two.artifact, two.fits_budget) == (None, None)
    assert len(plan().artifacts) == 1


def test_memory_on_the_device(plan: Planner) -> None:
    """Weights, KV cache of the device's context (fp16), activations and the runtime."""
    plan.recipe("model: phi-4\ndevices: {raspberry_pi_5: {llamacpp: [int4, fp16]}}\n")
    small, large = plan(hashed=False).cells
    assert small.artifact is not None
    assert small.device_memory_bytes is not None
    (device,) = plan(hashed=False).matrix.devices.values()
    kv = 2 * 40 * 10 * 128 * device.context_length * 2
    rest = small.device_memory_bytes - small.artifact.estimate.weight_bytes - kv
    assert 100e6 < rest < 400e6
    assert large.fits_budget is False
    assert small.fits_budget == (small.device_memory_bytes <= device.budget)
    assert small.budget == device.budget


WINDOWED = """\
model: phi-3-mini-4k
devices:
  raspberry_pi_5: {llamacpp: [int4], ort_genai: [int4]}
  ai_pc_intel: {openvino: [int4], ort_genai: {fp16: {provider: dml}}}
  mac: {mlx: [int4], pytorch: [fp16]}
"""


def test_a_window_that_a_runtime_has_not_limits_its_context(plan: Planner) -> None:
    """Phi-3-mini-4k: 2,047 tokens of 4,096. tests/slow/test_sliding_window.py runs them all."""
    plan.recipe(WINDOWED)
    found = plan(hashed=False)
    notes = {cell.cell.backend + "." + cell.cell.precision: cell_notes(cell.cell, found.matrix)
             for cell in found.cells}  # fmt: skip
    assert {name for name, texts in notes.items() if texts} == {
        "llamacpp.int4", "mlx.int4", "ort_genai.fp16",
    }  # fmt: skip
    (note,) = notes["llamacpp.int4"]
    assert note.startswith("right up to 2,047 of 4,096 tokens: ")
    assert "llama.cpp leaves out for phi3" in note
    assert note.endswith("planned for a context of 2,048; its memory is reckoned for 2,047")
    lines = plan_lines(found, "mine", plan.times(found))
    (line,) = (line for line in lines if "mlx-lm's phi3 has not" in line)
    assert line.startswith("note    phi-3-mini-4k.mac.mlx.int4: right up to 2,047")
    answer = plan_answer(found, "mine", plan.times(found))
    for cell, texts in zip(answer.cells, notes.values(), strict=True):
        assert [note for note in cell.notes if "judged" not in note] == texts


def test_the_cache_is_planned_for_the_tokens_that_can_be_used(plan: Planner) -> None:
    plan.recipe(WINDOWED)
    cells = {cell.cell.backend: cell for cell in plan(hashed=False).cells}
    pi = cells["llamacpp"]
    assert pi.artifact is not None
    assert pi.device_memory_bytes is not None
    cache = 2 * 32 * 32 * 96 * 2  # layers, heads, their size, fp16
    besides = pi.device_memory_bytes - pi.artifact.estimate.weight_bytes - 2047 * cache
    assert 100e6 < besides < 300e6


def test_a_device_within_the_window_is_not_held_against(plan: Planner) -> None:
    plan.recipe("model: phi-3-mini-4k\ndevices: {small: {llamacpp: [int4]}}\n")
    folder = plan.folder / "conf" / "device"
    folder.mkdir(parents=True)
    device = {
        "title": "Small", "class": "iot", "memory": "8 GiB", "budget": "6 GiB",
        "accelerators": ["cpu"], "context_length": 2047, "sources": SOURCES,
    }  # fmt: skip
    (folder / "small.yaml").write_text(json.dumps(device), encoding="utf-8")
    found = plan(hashed=False)
    (note,) = cell_notes(found.cells[0].cell, found.matrix)
    assert note.endswith("beyond it the artifact is another model")


def test_copies_in_the_runs_folder_count_as_disk_to_write(plan: Planner) -> None:
    plan.recipe("devices:\n  raspberry_pi_5: {ort_genai: [int4], llamacpp: [int4]}\n"
                "  intel_n100: {ort_genai: [int4]}\n")  # fmt: skip
    found = plan()
    sizes = {a.variant.backend: a.estimate.artifact_bytes for a in found.artifacts}
    answer = plan_answer(found, "mine", plan.times(found))
    assert answer.copied_bytes == sizes["ort_genai"]  # a copy for both devices
    assert answer.disk_bytes == sizes["llamacpp"] + 2 * sizes["ort_genai"]
    plan.prepared()
    plan.build(found)
    after = plan()
    again = plan_answer(after, "mine", plan.times(after))
    assert again.disk_bytes == again.copied_bytes == answer.copied_bytes


def test_the_card_says_where_the_runtime_ends(plan: Planner) -> None:
    plan.recipe(WINDOWED)
    found = plan(hashed=False)
    model = found.matrix.models["phi-3-mini-4k"]
    cards = {
        artifact.variant.backend: artifact_readme(
            model, backend(artifact.variant.backend), artifact.variant, "0", 4.5
        )
        for artifact in found.artifacts
    }
    said = "## Context\nUp to 2,047 tokens: the model's attention reaches back over a window"
    assert said in cards["llamacpp"]
    assert "mlx-lm's phi3 has not: beyond it the artifact is another model." in cards["mlx"]
    for name in ("openvino", "pytorch"):
        assert "## Context" not in cards[name]


@pytest.mark.parametrize(
    ("model", "published"),
    [
        ("phi-3.5-mini", {"Q8_0": 4.06, "Q4_K_M": 2.39}),
        ("phi-4", {"F32": 58.64, "F16": 29.32, "Q8_0": 15.58, "Q5_K_M": 10.6, "Q4_K_M": 9.05}),
    ],
)
def test_a_model_that_is_not_here_is_planned_from_the_catalogue(
    model: str, published: dict[str, float], plan: Planner
) -> None:
    """Sizes in GB, as files that llama.cpp made are published."""
    plan.recipe(
        "devices:\n  ai_pc_intel: {llamacpp: [int4, int8, fp16, fp32]}\n"
        "  intel_n100: {llamacpp: {int4: {type: Q5_K_M}}}\n"
    )
    found = plan(f"model={model}", hashed=False)
    (name,) = found.matrix.models
    assert found.matrix.models[name].is_estimate
    sizes = {a.variant.name: a.estimate.artifact_bytes / 1e9 for a in found.artifacts}
    for type, size in published.items():
        assert sizes[type] == pytest.approx(size, rel=0.01)


def test_ten_thousand_cells(
    plan: Planner, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own"
    (own / "device").mkdir(parents=True)
    (own / "recipes").mkdir()
    backends = {name: list(PRECISIONS) for name in SHIPPED}
    devices = 280
    for number in range(devices):
        device = {
            "title": f"Device {number}", "class": "iot", "memory": f"{4 + number % 12} GB",
            "budget": f"{3 + number % 12} GB", "accelerators": ["cpu", "webgpu", "metal"],
            "context_length": 1024 + 64 * (number % 32), "sources": dict.fromkeys(
                ("memory", "budget", "context_length"), "made up"
            ),
        }  # fmt: skip
        (own / "device" / f"d{number:03}.yaml").write_text(json.dumps(device), encoding="utf-8")
    recipe = {"devices": {f"d{number:03}": backends for number in range(devices)}}
    (own / "recipes" / "mine.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    started = time.process_time()
    found = plan(hashed=False, config_dir=own)
    seconds = time.process_time() - started
    with capsys.disabled():
        print(f"\n{len(found.cells):,} cells planned in {seconds:.2f} s of CPU")
    count = devices * len(SHIPPED) * len(PRECISIONS)
    assert count >= 10_000
    assert len(found.cells) == count
    assert len({cell.cell.id for cell in found.cells}) == count
    assert sum(len(artifact.cells) for artifact in found.artifacts) == sum(
        cell.cell.skip is None for cell in found.cells
    )
    # litert and executorch have their caches inside.
    contexts = len({(1024 + 64 * number) // 128 for number in range(32)})
    most = (len(SHIPPED) - 2 + 2 * contexts) * len(PRECISIONS)
    assert most - len(PRECISIONS) <= len(found.artifacts) <= most


GPTQ = """\
devices:
  raspberry_pi_5: {llamacpp: {int4: {method: gptq}}}
  intel_n100: {openvino: {int4: {method: gptq}}, llamacpp: {int4: {type: Q4_0}}}
  ai_pc_intel: {openvino: {int4: {method: gptq, mode: int4_sym}}}
"""


def test_one_calibration_serves_all_grids(plan: Planner) -> None:
    plan.recipe(GPTQ)
    found = plan("evaluation=none")
    (step,) = found.calibrations
    assert step.id == f"quantize.phi3-tiny-trained.{step.key[:8]}"
    artifacts = {artifact.variant.name: artifact for artifact in found.artifacts}
    needed = {name: one.activations for name, one in artifacts.items()}
    assert needed.pop("Q4_0") is None
    assert set(step.makes) == set(needed.values())
    assert len(step.makes) == 3
    assert set(step.makes) < set(found.store_keys["references"])
    for build in found.builds:
        assert step.id in found.needs(build)
    # Codes of 4 bits, a scale of 16 for 32, 64 and 128 of them, zeros of 8 for 64; the states that
    # are kept, twice.
    arch = found.matrix.models["phi3-tiny-trained"].architecture
    weights = sum(math.prod(shape) for name, shape in arch.tensors() if "_proj" in name)
    codes = weights * (3 / 2 + 2 / 32 + 3 / 64 + 2 / 128)
    assert step.disk_bytes == codes + 2 * 4 * 16384 * arch.hidden_size
    artifact_bytes = sum(artifact.estimate.artifact_bytes for artifact in found.artifacts)
    assert found.disk_bytes == artifact_bytes + step.disk_bytes


def test_a_grid_has_a_key_of_its_own_and_is_made_once(plan: Planner) -> None:
    plan.recipe(GPTQ)
    first = plan("evaluation=none")
    (all_of_it,) = first.calibrations
    made = next(iter(all_of_it.makes))
    with plan.prepared().workspace() as folder:
        (folder / "meta.json").write_text("{}", encoding="utf-8")
        plan.store.publish_reference(made, folder)
    (rest,) = plan("evaluation=none").calibrations
    assert (rest.key, rest.cached) == (all_of_it.key, False)
    assert set(rest.makes) == set(all_of_it.makes)
    assert rest.disk_bytes < all_of_it.disk_bytes

    plan.recipe("devices: {intel_n100: {openvino: {int4: {method: gptq}}}}")
    (alone,) = plan("evaluation=none").calibrations
    assert set(alone.makes) < set(all_of_it.makes)
    plan.recipe("devices: {intel_n100: {openvino: {int4: {method: gptq, tokens: 1024}}}}")
    (fewer,) = plan("evaluation=none").calibrations
    assert set(fewer.makes).isdisjoint(all_of_it.makes)
    assert fewer.key != alone.key
