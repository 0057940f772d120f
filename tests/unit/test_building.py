"""An artifact that is not what its variant promises is refused, and not stored."""

from __future__ import annotations

from pathlib import Path

import pytest

from phibuild.config.catalogue import Catalogue
from phibuild.config.compose import compose_build
from phibuild.execute.context import Context
from phibuild.execute.runner.events import BuildResult, read_result
from phibuild.execute.work.build import check_and_publish
from phibuild.planning.making import make_plan
from phibuild.planning.matrix import expand
from phibuild.planning.steps import PlannedArtifact
from phibuild.store.store import Store
from support.contexts import make_context


@pytest.fixture
def context(tmp_path: Path) -> Context:
    catalogue = Catalogue()
    composition = compose_build(["backend=llamacpp", "evaluation=none"], catalogue, sweep=False)
    store = Store(tmp_path / "store")
    store.prepare()
    plan = make_plan(
        expand(composition, catalogue),
        composition.recipes[0].config.evaluation,
        store,
        read_weights=True,
    )
    return make_context(plan, store, tmp_path)


def of(context: Context, precision: str) -> PlannedArtifact:
    return next(a for a in context.plan.artifacts if a.variant.precision == precision)


def result_of(artifact: PlannedArtifact, **changes: object) -> BuildResult:
    estimate = artifact.estimate
    result = {
        "types": dict(estimate.types),
        "weight_bytes": estimate.weight_bytes,
        "seconds": 1.0,
        "own_seconds": 0.25,
        "shared_seconds": 0.75,
        "peak_rss_bytes": 1,
        "tokenizer": {"probes": 90, "differences": []},
        **changes,
    }
    return read_result(result, BuildResult)


def folder_of(tmp_path: Path) -> Path:
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "model.gguf").write_bytes(b"made")
    return folder


def test_as_promised(context: Context, tmp_path: Path) -> None:
    artifact = of(context, "fp16")
    assert check_and_publish(context, artifact, folder_of(tmp_path), result_of(artifact)) is None
    stored = context.store.artifact(artifact.key)
    assert stored is not None
    made = stored.manifest
    assert {file.path for file in made.files} == {"LICENSE", "README.md", "model.gguf"}
    assert (made.build_own_seconds, made.build_shared_seconds) == (0.25, 0.75)
    assert made.build_seconds == 1.0
    assert (made.key, made.backend, made.variant) == (artifact.key, "llamacpp", artifact.variant)


def test_a_link_costs_its_own_artifact(context: Context, tmp_path: Path) -> None:
    artifact = of(context, "fp16")
    folder = folder_of(tmp_path)
    (folder / "tokenizer.json").symlink_to(tmp_path / "theirs")
    problem = check_and_publish(context, artifact, folder, result_of(artifact))
    assert problem is not None
    assert problem.startswith("could not be stored: ")
    assert "tokenizer.json is a symbolic link" in problem
    assert context.store.artifact(artifact.key) is None


def test_fp16_that_is_bf16(context: Context, tmp_path: Path) -> None:
    artifact = of(context, "fp16")
    types = {("BF16" if kind == "F16" else kind): n for kind, n in artifact.estimate.types.items()}
    problem = check_and_publish(
        context, artifact, folder_of(tmp_path), result_of(artifact, types=types)
    )
    assert problem is not None
    assert "BF16" in problem
    assert "promises" in problem
    assert context.store.artifact(artifact.key) is None


def test_int4_that_is_not_quantized(context: Context, tmp_path: Path) -> None:
    artifact = of(context, "int4")
    total = sum(artifact.estimate.types.values())
    problem = check_and_publish(
        context,
        artifact,
        folder_of(tmp_path),
        result_of(artifact, types={"F16": total}, weight_bytes=2 * total),
    )
    assert problem is not None
    assert "F16" in problem
    assert context.store.artifact(artifact.key) is None


def test_right_types_with_too_many_bits(context: Context, tmp_path: Path) -> None:
    artifact = of(context, "int8")
    problem = check_and_publish(
        context,
        artifact,
        folder_of(tmp_path),
        result_of(artifact, weight_bytes=2 * artifact.estimate.weight_bytes),
    )
    assert problem is not None
    assert "bits per weight" in problem
