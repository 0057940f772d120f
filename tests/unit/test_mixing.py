"""Types of tensors: the choice of least loss for a size, of least size for a loss; patterns; what
is refused."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from phibuild.backends.base import Backend
from phibuild.backends.mixed import affine_error
from phibuild.backends.registry import SHIPPED, backend
from phibuild.planning.mixing import choose
from phibuild.planning.tensor_types import patterns, types_yaml
from phibuild.schema import Variant
from phibuild.worker.architecture import Architecture
from support.planner import Planner, plan
from support.quickstart import devices_of
from support.refusals import Refuse, refuse

__all__ = ["plan", "refuse"]  # fixtures

MIXED = [name for name in SHIPPED if "target_size" in backend(name).options.model_fields]
Things = list[list[tuple[int, float]]]
THINGS: st.SearchStrategy[Things] = st.lists(
    st.lists(
        st.tuples(st.integers(1, 50), st.floats(0, 1, allow_subnormal=False)),
        min_size=1,
        max_size=4,
    ).map(lambda choices: sorted(choices, key=lambda one: one[0])),
    min_size=1,
    max_size=5,
)


def totals(things: Things, numbers: tuple[int, ...] | list[int]) -> tuple[int, float]:
    taken = [choices[number] for choices, number in zip(things, numbers, strict=True)]
    return sum(size for size, _ in taken), sum(loss for _, loss in taken)


def chosen(things: Things, room: int | None, most: float | None) -> list[int] | None:
    losses = [np.array([loss for _, loss in choices]) for choices in things]
    sizes = [np.array([size for size, _ in choices]) for choices in things]
    return choose(losses, sizes, room, most)


@given(THINGS, st.integers(0, 120))
def test_no_choice_of_this_size_loses_less(things: Things, room: int) -> None:
    least = sum(choices[0][0] for choices in things)
    numbers = chosen(things, room, None)
    assert numbers is not None
    size, loss = totals(things, numbers)
    assert size <= least + room
    every = itertools.product(*(range(len(choices)) for choices in things))
    best = min(
        loss for size, loss in (totals(things, some) for some in every) if size <= least + room
    )
    assert loss == pytest.approx(best, abs=1e-12)


@given(THINGS, st.floats(0, 3))
def test_no_choice_of_this_loss_is_smaller(things: Things, most: float) -> None:
    every = itertools.product(*(range(len(choices)) for choices in things))
    good = [size for size, loss in (totals(things, some) for some in every) if loss <= most - 1e-9]
    numbers = chosen(things, None, most)
    if numbers is None:
        assert not good
        return
    size, loss = totals(things, numbers)
    assert loss <= most + 1e-9
    assert not good or size <= min(good)


@pytest.mark.parametrize("group_size", [16, 32, 64, 128, 256, -1])
def test_errors_are_those_of_normal_weights(group_size: int) -> None:
    random = np.random.default_rng(3)
    width = group_size if group_size > 0 else 1024
    weights = random.standard_normal((1 << 20) // width * width).reshape(-1, width)
    low, high = weights.min(1, keepdims=True), weights.max(1, keepdims=True)
    for bits in (3, 4, 6, 8):
        step = (high - low) / ((1 << bits) - 1)
        error = np.square(np.rint((weights - low) / step) * step + low - weights).mean()
        assert affine_error(bits, group_size) == pytest.approx(error, rel=0.01)


def test_where_nothing_is_known_the_largest_are_taken() -> None:
    assert chosen([[(1, 1.0), (2, 1.0)], [(1, 1.0), (3, 1.0), (5, 1.0)]], None, None) == [1, 2]


@given(st.dictionaries(
    st.tuples(st.integers(0, 40), st.sampled_from(["mlp.down_proj", "self_attn.o_proj"])),
    st.sampled_from(["u4", "u8"]), min_size=1,
))  # fmt: skip
def test_patterns_give_every_matrix_its_type_again(given: dict[tuple[int, str], str]) -> None:
    types = {f"model.layers.{layer}.{role}.weight": kind for (layer, role), kind in given.items()}
    types["lm_head.weight"] = "u8"
    found = yaml.safe_load(types_yaml(types))["tensor_types"]
    assert found == patterns(types)
    for name, kind in types.items():
        assert {value for key, value in found.items() if re.search(key, name)} == {kind}


@pytest.mark.parametrize("name", MIXED)
def test_choices_are_those_of_the_layout(name: str, plan: Planner) -> None:
    """A matrix has the bytes and the type in the layout that its choice says (one may be several
    tensors there), and the others have what they had."""
    spec, variant, arch = planned(plan, name)
    matrices = spec.matrices(arch, variant)
    assert len(matrices) >= 4 * arch.layers
    for matrix in (matrices[0], matrices[-1]):
        sizes = [choice.nbytes for choice in matrix.choices]
        assert sizes == sorted(sizes)
        errors = [choice.error for choice in matrix.choices]
        assert errors == sorted(errors, reverse=True)
        layouts = []
        for choice in matrix.choices:
            options = {**variant.options, "tensor_types": {matrix.source: choice.kind}}
            changed = variant.model_copy(update={"options": options})
            layouts.append({tensor.name: tensor for tensor in spec.layout(arch, changed)})
        wholes = [sum(tensor.nbytes for tensor in layout.values()) for layout in layouts]
        assert [whole - wholes[0] for whole in wholes] == [size - sizes[0] for size in sizes]
        for layout, choice in zip(layouts[1:], matrix.choices[1:], strict=True):
            others = [tensor for key, tensor in layout.items() if tensor != layouts[0][key]]
            assert sum(tensor.nbytes for tensor in others) == choice.nbytes
            assert all(choice.kind.startswith(tensor.kind) for tensor in others)


# The recipes' devices, but for kernels and defaults of others.
DEVICE_OF = {name: next(iter(devices_of(name))) for name in MIXED} | {
    "llamacpp": "intel_n100",
    "ort_genai": "copilot_pc_snapdragon",
}
FORM = {"qnn": "form: onnx, "}
"""What has to be asked for with a target of types."""


def recipe(name: str, target: str) -> str:
    return f"devices: {{{DEVICE_OF[name]}: {{{name}: {{int4: {{{FORM.get(name, '')}{target}}}}}}}}}"


def planned(plan: Planner, name: str, options: str = "") -> tuple[Backend, Variant, Architecture]:
    plan.recipe(f"devices: {{{DEVICE_OF[name]}: {{{name}: {{int4: {{{options}}}}}}}}}")
    found = plan("evaluation=none")
    (artifact,) = found.artifacts
    return backend(name), artifact.variant, found.matrix.models[artifact.model].architecture


@pytest.mark.parametrize("name", MIXED)
def test_a_plan_knows_the_size_before_anything_is_measured(name: str, plan: Planner) -> None:
    size = 23.2 if name == "ort_genai" else 4.3
    plan.recipe(recipe(name, f"target_size: {size} MB"))
    found = plan("evaluation=none")
    (artifact,), (step,) = found.artifacts, found.calibrations
    assert 0.98 * size < artifact.estimate.artifact_bytes / 1e6 <= size
    assert artifact.variant.name.endswith(f"-{size}MB")
    assert step.kind == "sensitivity"
    assert artifact.sensitivity == step.key
    assert step.id in found.needs(found.builds[0])
    assert step.key in found.store_keys["references"]
    assert found.disk_bytes == artifact.estimate.artifact_bytes + step.disk_bytes
    assert step.disk_bytes > 0
    plan.recipe(recipe(name, "target_kl: 0.02"))
    (other,) = plan("evaluation=none").artifacts
    assert other.sensitivity == artifact.sensitivity
    assert other.key != artifact.key
    # What it can come to at most is what memory is planned for.
    assert other.estimate.artifact_bytes > artifact.estimate.artifact_bytes


@pytest.mark.parametrize("name", MIXED)
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("target_size: 1 MB", "1,000,000 bytes are less than the smallest types take"),
        ("tensor_types: {ffn_dwn: q9}", "no tensor is called 'ffn_dwn'"),
        ("tensor_types: {'layers.0|blk.0': q9}", ".weight cannot be q9"),
    ],
)
def test_what_no_artifact_can_be(name: str, options: str, reason: str, refuse: Refuse) -> None:
    text = (
        f"devices:\n  {DEVICE_OF[name]}: {{{name}: {{int4: {{{FORM.get(name, '')}{options}}}}}}}\n"
    )
    refuse.write("recipes/mine.yaml", text)
    (error,) = refuse("plan", "recipe=mine")
    option = options.partition(":")[0]
    what = f"option {option!r} of {name} does not suit phi3-tiny-trained"
    assert error.startswith(f"recipes/mine.yaml:2: {what}: "), error
    assert reason in error


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ("target_size: 0", "target_size"),
        ("target_size: much", "target_size"),
        ("target_kl: -1", "target_kl"),
        ("target_kl: .nan", "target_kl"),
        ("tensor_types: {'(': Q8_0}", "tensor_types"),
        ("tensor_types: [Q8_0]", "tensor_types"),
        ("target_size: 3 MB, target_kl: 0.1", "target_size"),
        ("target_size: 3 MB, tensor_types: {a: b}", "tensor_types"),
    ],
)
def test_bad_options(options: str, wrong: str, refuse: Refuse) -> None:
    text = f"devices:\n  intel_n100:\n    llamacpp: {{int4: {{{options}}}}}\n"
    refuse.write("recipes/mine.yaml", text)
    (error,) = refuse("plan", "recipe=mine")
    assert error.startswith(f"recipes/mine.yaml:3: option {wrong!r} of llamacpp: ")
